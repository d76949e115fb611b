"""Annotated image files, checked before they become an image source."""

import dataclasses
import difflib
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from keras_dsnet.data.class_folders import read_headers, readable_name, some_names
from keras_dsnet.data.encoded_image import UPRIGHT
from keras_dsnet.data.image_folder import HOLD_OUT_FRACTION, readable_files, shuffled_files
from keras_dsnet.data.image_source import describe_splits, resolve_split
from keras_dsnet.detection.box_source import BoxFileSource, Objects
from keras_dsnet.utils.shown_names import first_names

_TRANSPOSED_FROM = 5


@dataclasses.dataclass
class Annotation:
    """The objects of an image as a file describes them.

    Attributes:
        path: Str, path of the image.
        boxes: List of `(xmin, ymin, xmax, ymax)` in pixels, which may be fractions.
        names: List of str, the class name of each box.
        size: `(width, height)` of the annotated image in pixels, or None.
        difficult: List of bools. Empty if no box is difficult.
        crowd: List of bools. Empty if no box is a crowd.
        areas: List of floats in square pixels. Empty for the areas of the boxes.
    """

    path: str
    boxes: list
    names: list
    size: tuple[float, float] | None = None
    difficult: list = dataclasses.field(default_factory=list)
    crowd: list = dataclasses.field(default_factory=list)
    areas: list = dataclasses.field(default_factory=list)


def sorted_class_names(names):
    """Returns class names in the order of their indices: by value if all are numbers."""
    names = set(names)
    return tuple(sorted(names, key=int) if all(map(str.isdecimal, names)) else sorted(names))


def choose_split(split, specs, splits, default, root):
    """Returns the name and the images of the split to open.

    Args:
        split: `"train"` or `"eval"`.
        specs: Pair of str or None, the splits in TFDS syntax that training and evaluation open.
        splits: Dict that maps the names of the splits to lists of images.
        default: Dict that maps `"train"` and `"eval"` to the names of splits. Without `"eval"`, a
            tenth of the training images is held out. By default, images that evaluation opens are
            not trained on.
        root: Path of the data set, for messages.

    Returns:
        `(name, images, notes)`.

    Raises:
        ValueError: There is no such split.
    """
    # Slices and held-out images are taken from a fixed shuffled order.
    splits = {name: shuffled_files(images) for name, images in splits.items()}
    notes: tuple[str, ...] = ()
    if "eval" not in default:
        name, train = default["train"], splits.pop(default["train"])
        if len(train) < 2:
            raise ValueError(f"{root} must hold two images or more. Received: {len(train)}")
        count = max(1, round(len(train) * HOLD_OUT_FRACTION))
        splits |= {name: train[count:], "test": train[:count]}
        default = {"train": name, "eval": "test"}
        notes = (
            f"no list of images for evaluation: {count} of {len(train)} images are held out of "
            f"training as the split 'test'",
        )
    spec, held_out = specs if split == "train" else specs[::-1]
    if spec:
        return spec, _images_of(spec, splits, root), notes
    if split not in default:
        raise _nothing_to_train_on(root, splits)
    name, images = default[split], splits[default[split]]
    if split == "train":
        other = held_out or default["eval"]
        evaluated = _images_of(held_out, splits, root) if held_out else splits[other]
        shared = set(images) & set(evaluated)
        if shared:
            notes = (
                f"{len(shared)} images of the list '{name}' are also in '{other}': they are left "
                f"out of training",
            )
            images = [image for image in images if image not in shared]
    return name, images, notes


def _nothing_to_train_on(root, names):
    return ValueError(
        f"{root} must have a list of images for training, such as 'train' or 'trainval'. "
        f"Received: {', '.join(names)}"
    )


def _images_of(spec, splits, root):
    """Returns the images of a split in TFDS syntax."""
    name = _base(spec)
    named = [each for each in splits if names_split(spec, each)]
    named = [each for each in named if each == name.strip()] or named
    if len(named) != 1:
        shown = describe_splits({name: len(images) for name, images in splits.items()})
        wrong = "not valid" if not named else f"one of {' and '.join(named)}"
        raise ValueError(f"split '{spec}' of data set '{root}' is {wrong}: it has {shown}")
    key = _as_identifier(name)
    _, chosen = resolve_split(key + spec[len(name) :], {key: len(splits[named[0]])}, str(root))
    return splits[named[0]][chosen]


def names_split(spec: str, name: str) -> bool:
    """Returns whether a split in TFDS syntax, such as `"train[:90%]"`, is one of a name.

    The syntax allows no other signs in a name than letters, digits and underscores, so that all
    others count as underscores.

    Args:
        spec: Str, the split.
        name: Str, the name of a list of images.
    """
    return _as_identifier(_base(spec)) == _as_identifier(name)


def _base(spec):
    return re.match(r"[^\[+]*", spec).group()


def _as_identifier(name):
    return re.sub(r"\W", "_", name.strip())


def make_source(
    root: pathlib.Path,
    annotations: Sequence[Annotation],
    class_names: Sequence[str],
    on_bad_image: str,
    split: str | None,
    notes: Sequence[str],
) -> BoxFileSource:
    """Checks annotated images and makes an image source of them.

    Boxes are clipped to the image. Boxes without area in the image are left out. A box is relative
    to the size that its file states, unless the boxes of the image lie in the image and not in one
    of that size, or height and width are swapped; then to the size of the image.

    Args:
        root: Path of the data set, for messages.
        annotations: Sequence of `Annotation`.
        class_names: Sequence of str, one name per class in index order.
        on_bad_image: `"skip"` to leave out and log unreadable images, `"raise"` to raise an error.
        split: Str, the split of the data set.
        notes: Sequence of str, lines for the user.

    Returns:
        `BoxFileSource`.

    Raises:
        ValueError: There is no image or no box, a class name is unknown, or an image is unreadable
            and `on_bad_image` is `"raise"`.
    """
    if not annotations:
        why = f": {notes[-1]}" if notes else ""
        raise ValueError(f"split '{split}' of {readable_name(root)} holds no annotated image{why}")
    classes = _class_indices(annotations, class_names)
    by_path = {annotation.path: index for index, annotation in enumerate(annotations)}
    files, turns, bad_notes = readable_files(
        [(path, 0) for path in by_path], root, on_bad_image, ("",)
    )
    indices = [by_path[path] for path, _ in files]
    kept = [annotations[index] for index in indices]
    sizes, orientations, size_notes = _sizes(kept, turns or [UPRIGHT] * len(kept))
    objects, box_notes = _objects(kept, [classes[index] for index in indices], sizes)
    source = BoxFileSource(
        readable_name(root),
        [path for path, _ in files],
        objects,
        class_names,
        on_bad_image,
        orientations if any(value != UPRIGHT for value in orientations) else None,
        split,
        (*notes, *bad_notes, *size_notes, *box_notes),
    )
    if not source.num_boxes:
        raise ValueError(f"the {len(kept)} images of split '{split}' of {root} have no box")
    absent = [name for name, count in zip(class_names, source.class_counts or ()) if not count]
    if absent:
        line = f"split '{split}' has no box of {len(absent)} classes: {first_names(absent)}"
        source.notes += (line,)
    return source


def _class_indices(annotations, class_names):
    index_of = {name: index for index, name in enumerate(class_names)}
    classes = []
    for annotation in annotations:
        for name in annotation.names:
            if name not in index_of:
                close = difflib.get_close_matches(name, class_names, n=1)
                known = first_names([*map(repr, class_names)])
                hint = f"; did you mean '{close[0]}'?" if close else ""
                raise ValueError(
                    f"image {readable_name(annotation.path)} has an object of the unknown class "
                    f"'{name}': the classes are {known}{hint}"
                )
        classes.append([index_of[name] for name in annotation.names])
    return classes


def _sizes(annotations, orientations):
    """Returns the sizes that boxes are relative to, `[n, 2]`, and the orientations to turn by."""
    headers = read_headers([annotation.path for annotation in annotations])
    sizes, turned, other = [], [], []
    for annotation, header, orientation in zip(annotations, headers, orientations, strict=True):
        stored = (header.width, header.height)
        upright = stored[::-1] if orientation >= _TRANSPOSED_FROM else stored
        stated = annotation.size
        size = upright
        if stated == stored and orientation >= _TRANSPOSED_FROM and stated != upright:
            # The boxes were drawn by a program that ignores the orientation.
            size, orientation = stored, UPRIGHT
        elif stated is not None and min(stated) > 0 and stated != upright:
            # A turned size is a mistake of the annotation. A box may reach a little too far.
            inside = [_fit(annotation.boxes, each) for each in (upright, stated)]
            is_of_image = stated == upright[::-1] or (inside[0] and not inside[1])
            size = upright if is_of_image else stated
            other.append(annotation.path)
        sizes.append(size)
        turned.append(orientation)
    notes = ()
    if other:
        notes = (f"{len(other)} images have another size than stated: {some_names(other)}",)
    return np.array(sizes, np.float64), turned, notes


def _fit(boxes, size):
    return all(box[2] <= size[0] and box[3] <= size[1] for box in boxes)


def _objects(annotations, classes, sizes):
    """Returns the `Objects` of every image, and lines about boxes that were changed."""
    counts = [len(annotation.boxes) for annotation in annotations]
    image_of = np.repeat(np.arange(len(counts)), counts)
    boxes = np.array([box for each in annotations for box in each.boxes], np.float64)
    boxes = boxes.reshape(-1, 4) / np.tile(sizes, 2)[image_of]
    clipped = np.clip(boxes, 0.0, 1.0)
    sides = clipped[:, 2:] - clipped[:, :2]
    # As the source stores them, where a sliver can have no width any more.
    stored = clipped.astype(np.float32)
    has_area = (stored[:, 2:] > stored[:, :2]).all(axis=1)
    # Half a pixel in a thousand is how annotation programs round.
    was_outside = has_area & (np.abs(boxes - clipped) > 0.0005).any(axis=1)
    columns = {
        "boxes": clipped[:, (1, 0, 3, 2)].astype(np.float32),
        "classes": np.array([index for each in classes for index in each], np.int32),
        "difficult": _flags([each.difficult for each in annotations], counts),
        "crowd": _flags([each.crowd for each in annotations], counts),
        "areas": sides.prod(axis=1).astype(np.float32),
    }
    stated = np.array([area for each in annotations for area in each.areas], np.float64)
    if len(stated) == len(boxes):
        columns["areas"] = (stated / sizes.prod(axis=1)[image_of]).astype(np.float32)
    columns = {name: column[has_area] for name, column in columns.items()}
    ends = np.cumsum(np.bincount(image_of[has_area], minlength=len(counts)))[:-1]
    parts = {name: np.split(column, ends) for name, column in columns.items()}
    objects = [Objects(*values) for values in zip(*parts.values(), strict=True)]
    notes = [
        _note(annotations, image_of[~has_area], "without area in their image are left out"),
        _note(annotations, image_of[was_outside], "that reach beyond their image are clipped"),
    ]
    return objects, tuple(note for note in notes if note)


def _flags(lists, counts):
    pairs = zip(lists, counts, strict=True)
    return np.array([flag for flags, count in pairs for flag in flags or [False] * count], bool)


def _note(annotations, images, what):
    if not len(images):
        return None
    paths = [annotations[index].path for index in np.unique(images)]
    return f"{len(images)} boxes {what}: {some_names(paths)}"


def left_out(paths: Sequence[str], what: str, on_bad_image: str) -> tuple[str, ...]:
    """Returns a line about files that are left out, or raises it.

    Args:
        paths: Sequence of file names.
        what: Str, what is wrong with them, such as "images are missing".
        on_bad_image: `"skip"` or `"raise"`.

    Raises:
        ValueError: There are such files and `on_bad_image` is `"raise"`.
    """
    if not paths:
        return ()
    line = f"{len(paths)} {what}: {some_names(paths)}"
    if on_bad_image == "raise":
        raise ValueError(line)
    return (f"{line}; left out",)


def default_splits(names: Sequence[str], kind_of: Callable, root: str) -> Mapping[str, str]:
    """Returns the splits to train on and to evaluate on.

    Training takes `train` before `trainval`. Evaluation takes the validation split if training took
    `train`, else the test split. The only split there is, by a name that tells nothing, is trained
    on.

    Args:
        names: Sequence of str, the names of the splits.
        kind_of: Function of a name that returns "train", "validation", "test" or None.
        root: Str, path of the data set, for messages.

    Returns:
        Dict from "train" and "eval" to names of splits. One of them is missing if there is no such
        split.

    Raises:
        ValueError: The names tell nothing.
    """
    kinds: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for name in names:
        if kind_of(name):
            kinds[kind_of(name)].append(name)
    if len(names) == 1 and not any(kinds.values()):
        # CVAT calls the list of a task without subsets `default`.
        kinds["train"] = list(names)
    train = sorted(kinds["train"], key=lambda name: (name != "train", name == "trainval", name))
    if not train and any(kinds.values()):
        return {"eval": (kinds["validation"] + kinds["test"])[0]}
    if not train:
        raise _nothing_to_train_on(root, names)
    chosen = {"train": train[0]}
    others = kinds["test"] if train[0] == "trainval" else kinds["validation"] + kinds["test"]
    if others:
        chosen["eval"] = others[0]
    return chosen
