"""COCO json files with their folders of images, opened as data sets with boxes."""

import contextlib
import math
import pathlib

from keras_dsnet.data.class_folders import readable_name, some_names
from keras_dsnet.data.folder_layout import split_kind
from keras_dsnet.detection.annotations import (
    Annotation,
    choose_split,
    default_splits,
    left_out,
    make_source,
    names_split,
)
from keras_dsnet.detection.box_source import BoxFileSource
from keras_dsnet.utils.argument_checks import read_json

_KEYS = ("images", "annotations", "categories")
_IN_FOLDER = "_annotations.coco.json"  # beside the images of a split


def find_coco_files(root: pathlib.Path) -> dict[str, tuple[pathlib.Path, pathlib.Path]]:
    """Finds the COCO json files of a folder.

    They are `annotations/instances_<split>.json` beside a folder named like the split, or
    `<split>/_annotations.coco.json` among the images.

    Args:
        root: Path of the folder.

    Returns:
        Dict that maps the names of splits to `(json, folder of images)`. Empty if there are none.
    """
    found = {
        path.parent.name: (path, path.parent)
        for path in sorted(root.glob(f"*/{_IN_FOLDER}"))
        if split_kind(path.parent.name)
    }
    for path in sorted(root.glob("annotations/instances_*.json")):
        name = path.stem.removeprefix("instances_")
        places = [root / name, root / "images" / name, root / "images", root]
        found[name] = (path, next(place for place in places if place.is_dir()))
    return found


def load_coco_json(
    path: pathlib.Path,
    images: pathlib.Path | None,
    split: str,
    specs: tuple[str | None, str | None],
    class_names: list[str] | None,
    on_bad_image: str,
) -> BoxFileSource:
    """Opens one COCO json file. A tenth of its images is held out as the split `test`.

    Args:
        path: Path of the json file.
        images: Path of the folder of its images. None for that of the json file.
        split: `"train"` or `"eval"`.
        specs: Pair of str or None, splits in TFDS syntax of training and of evaluation that
            override the default ones. `"full"` has all images.
        class_names: List of str, the classes in index order. None for the categories in the order
            of their ids.
        on_bad_image: `"skip"` to leave out and log unreadable images, `"raise"` to raise an error.

    Returns:
        `BoxFileSource`.

    Raises:
        ValueError: The file is not in this form, or a category is unknown.
    """
    content = _read(path)
    with _unreadable(path):
        known = class_names or _class_names(content)
    images = images or path.parent
    annotations, notes, missing = _annotations(path, content, images)
    notes += left_out(missing, "images are missing", on_bad_image)
    _check_some(annotations, content, path, images)
    by_path = {annotation.path: annotation for annotation in annotations}
    is_full = [(spec or "").strip().startswith("full") for spec in specs]
    if is_full[split == "eval"]:
        splits, default = {"full": list(by_path)}, {"train": "full", "eval": "full"}
    else:
        splits, default = {"train": list(by_path)}, {"train": "train"}
        if any(is_full):
            splits["full"] = list(by_path)
    name, chosen, more = choose_split(split, specs, splits, default, path)
    kept = [by_path[image] for image in chosen]
    return make_source(path, kept, known, on_bad_image, name, (*notes, *more))


def load_coco_folder(
    root: pathlib.Path,
    files: dict[str, tuple[pathlib.Path, pathlib.Path]],
    split: str,
    specs: tuple[str | None, str | None],
    class_names: list[str] | None,
    on_bad_image: str,
) -> BoxFileSource:
    """Opens a folder of COCO json files, one for each split.

    The classes are those of the training split, or of the evaluation split where there is none.

    Args:
        root: Path of the folder.
        files: Dict of `find_coco_files`.
        split: `"train"` or `"eval"`.
        specs: Pair of str or None, splits in TFDS syntax of training and of evaluation that
            override the default ones.
        class_names: List of str, the classes in index order, or None.
        on_bad_image: `"skip"` to leave out and log unreadable images, `"raise"` to raise an error.

    Returns:
        `BoxFileSource`.

    Raises:
        ValueError: A file is not in this form, a category is unknown, or there is no such split.
    """
    default = default_splits(list(files), split_kind, str(root))
    contents = {name: _read(path) for name, (path, _) in files.items()}
    trained = default.get("train") or default["eval"]
    with _unreadable(files[trained][0]):
        known = class_names or _class_names(contents[trained])
    opened = _split_of(specs[split == "eval"], files) or default.get(split, trained)
    splits, by_path = {}, {}
    lines: tuple[str, ...] = ()
    # An image of several files has the objects that its split gives it.
    for name in sorted(files, key=lambda name: name == opened):
        path, images = files[name]
        annotations, notes, missing = _annotations(path, contents[name], images)
        if name == opened:
            lines = (*notes, *left_out(missing, "images are missing", on_bad_image))
            _check_some(annotations, contents[name], path, images)
        by_path |= {annotation.path: annotation for annotation in annotations}
        splits[name] = [annotation.path for annotation in annotations]
    name, chosen, more = choose_split(split, specs, splits, default, root)
    kept = [by_path[image] for image in chosen]
    return make_source(root, kept, known, on_bad_image, name, (*lines, *more))


def _split_of(spec, files):
    """Returns the name of the split that a split in TFDS syntax opens, or None for another."""
    return next((name for name in files if spec and names_split(spec, name)), None)


def _check_some(annotations, content, path, images):
    if not annotations:
        count = len(content["images"])
        raise ValueError(
            f"folder {readable_name(images)} holds none of the {count} images of {path}"
        )


def _read(path):
    content = read_json(path, "COCO file")
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in _KEYS
    ):
        found = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"COCO file {path} must have the lists {', '.join(_KEYS)}. Received: {found}"
        )
    return content


def _class_names(content):
    """Returns the categories in the order of their ids.

    Roboflow writes the name of the data set as a category above all others, which has no box.
    """
    categories = sorted(content["categories"], key=lambda category: category["id"])
    used = {annotation["category_id"] for annotation in content["annotations"]}
    above = {category.get("supercategory") for category in categories[1:]}
    if len(above) == 1 and categories[0]["name"] in above and categories[0]["id"] not in used:
        categories = categories[1:]
    # Files that were joined can give one name to several ids.
    return tuple(dict.fromkeys(category["name"] for category in categories))


@contextlib.contextmanager
def _errors_of(subject):
    """Names what the errors within are about, such as a file or an annotation."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{subject}: {what}") from error


def _unreadable(path):
    return _errors_of(f"COCO file {path} cannot be read")


def _number_of(annotation):
    return annotation.get("id") if isinstance(annotation, dict) else annotation


def _annotations(path, content, images):
    """Returns the `Annotation` of every image that exists, notes, and the missing files."""
    with _unreadable(path):
        names = {category["id"]: category["name"] for category in content["categories"]}
        known = {}
        for image in content["images"]:
            if image["id"] in known:
                files = known[image["id"]]["file_name"], image["file_name"]
                raise ValueError(f"the image id {image['id']} is given to {' and '.join(files)}")
            known[image["id"]] = image
        grouped: dict = {key: [] for key in known}
        for annotation in content["annotations"]:
            with _errors_of(f"annotation {_number_of(annotation)}"):
                if annotation["image_id"] not in known:
                    raise ValueError(f"there is no image of id {annotation['image_id']}")
                grouped[annotation["image_id"]].append(_object(annotation, names))
        # Files that were joined can list an image twice, each time with some of its boxes.
        keys_of: dict[str, list] = {}
        for key, image in known.items():
            keys_of.setdefault(str(images / image["file_name"]), []).append(key)
        sizes = {
            key: (float(image.get("width") or 0), float(image.get("height") or 0))
            for key, image in known.items()
        }
    found, missing = [], []
    for file, keys in keys_of.items():
        if not pathlib.Path(file).is_file():
            missing.append(file)
            continue
        objects = [each for key in keys for each in grouped[key]]
        boxes, classes, crowd, areas = zip(*objects) if objects else ((),) * 4
        size = sizes[keys[0]]
        found.append(
            Annotation(
                file,
                list(boxes),
                list(classes),
                size,
                [False] * len(boxes),
                list(crowd),
                list(areas),
            )
        )
    twice = [file for file, keys in keys_of.items() if len(keys) > 1]
    line = f"{len(twice)} images are listed more than once: {some_names(twice)}"
    return found, ((line,) if twice else ()), missing


def _object(annotation, names):
    left, top, width, height = box = [float(value) for value in annotation["bbox"]]
    if not all(map(math.isfinite, box)):
        raise ValueError(f"bbox must be four numbers. Received: {annotation['bbox']}")
    area = annotation.get("area")
    area = width * height if area is None else float(area)
    corners = (left, top, left + width, top + height)
    if annotation["category_id"] not in names:
        raise ValueError(f"there is no category of id {annotation['category_id']}")
    return corners, names[annotation["category_id"]], bool(annotation.get("iscrowd", 0)), area
