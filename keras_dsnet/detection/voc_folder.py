"""Folders in PASCAL VOC form, opened as data sets with boxes."""

import dataclasses
import math
import os
import pathlib
import re
import xml.etree.ElementTree as ElementTree

from keras_dsnet.data.class_folders import IMAGE_ENDINGS, readable_name, some_names
from keras_dsnet.data.folder_layout import split_kind
from keras_dsnet.detection.annotations import (
    Annotation,
    choose_split,
    default_splits,
    left_out,
    make_source,
    sorted_class_names,
)
from keras_dsnet.detection.box_source import BoxFileSource
from keras_dsnet.detection.frame_split import read_ranges

_ANNOTATIONS = ("annotations", "annots", "annotation", "xmls", "xml", "labels")
_IMAGES = ("jpegimages", "images", "image", "imgs", "img")
_LISTS = "ImageSets/Main"
# The lists of one class, such as aeroplane_train.txt, have 1, 0 or -1 behind each name.
_LISTED = re.compile(r"(.*?)(?:\s+(-?[01]))?")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def load_voc_folder(
    root: pathlib.Path,
    split: str,
    specs: tuple[str | None, str | None],
    class_names: list[str] | None,
    on_bad_image: str,
    ranges: str | os.PathLike | None = None,
) -> BoxFileSource:
    """Opens a folder in PASCAL VOC form.

    It holds a file of annotations for each image, in `Annotations/` beside `JPEGImages/` (or in
    folders of similar names, or in one folder for both), and lists of images in `ImageSets/Main/`.
    Folders named `train`, `val` and `test` may hold the splits instead. Without lists, a tenth of
    the images is held out.

    Args:
        root: `pathlib.Path` of the folder.
        split: `"train"` or `"eval"`.
        specs: Pair of str or None, splits in TFDS syntax of training and of evaluation that
            override the default ones. They are named by their lists or folders.
        class_names: List of str, the classes in index order. None for those of all annotations in
            the folder, sorted by name.
        on_bad_image: `"skip"` to leave out and log images and annotations that cannot be read,
            `"raise"` to raise an error.
        ranges: Path of a file of ranges of frames (`frame_split.read_ranges`) that names the
            splits in place of the lists. None for the lists of the folder.

    Returns:
        `BoxFileSource`.

    Raises:
        ValueError: The folder is not in this form, an annotation cannot be read, a class name is
            unknown, or there is no such split.
    """
    places = _find_places(root)
    images, annotated, splits = _list_files(places)
    bad: list[str] = []
    doubtful: list[str] = []
    parsed = {
        key: _parse(path, images.get(key, ()), bad, doubtful)
        for key, path in sorted(annotated.items())
    }
    if bad and on_bad_image == "raise":
        raise ValueError(bad[0])
    known = class_names or sorted_class_names(
        name for each in parsed.values() if each for name in each.names
    )
    if not known:
        raise ValueError(f"the annotations in {root} have no object: {len(parsed)} files")
    if ranges is not None:
        splits = read_ranges(ranges, annotated)
    elif "" in places:
        lists = _read_lists(places[""].root / _LISTS, known, {*annotated, *images})
        splits = lists or {"train": splits[""]}
    is_listed = ranges is not None or ("" in places and bool(lists))
    default = default_splits(list(splits), split_kind, str(root))
    name, chosen, notes = choose_split(split, specs, splits, default, root)
    kept = [parsed[key] for key in chosen if parsed.get(key) and parsed[key].path]
    notes = (
        *notes,
        *([f"{len(bad)} annotations are left out: {bad[0]}"] if bad else []),
        *(
            [f"{len(doubtful)} images are one of several of their name: {some_names(doubtful)}"]
            if doubtful
            else []
        ),
        *_missing(chosen, parsed, places, on_bad_image),
        *([] if is_listed else _without_annotation(images, annotated, name, places, on_bad_image)),
    )
    return make_source(root, kept, known, on_bad_image, name, notes)


def read_frames(root: pathlib.Path) -> tuple[dict[str, Annotation], dict[str, list[str]]]:
    """Reads all annotations of a folder in PASCAL VOC form, and its lists.

    Args:
        root: Path of the folder.

    Returns:
        `(frames, lists)`: dict from names to `Annotation`, of images that exist and have an object,
        and dict from the names of lists to names.

    Raises:
        ValueError: The folder is not in this form, or an annotation cannot be read.
    """
    places = _find_places(root)
    images, annotated, lists = _list_files(places)
    bad: list[str] = []
    parsed = {
        key: _parse(path, images[key], bad, []) for key, path in annotated.items() if key in images
    }
    if bad:
        raise ValueError(bad[0])
    frames = {key: parsed[key] for key in sorted(parsed) if parsed[key].names}
    if "" in places:
        names = {name for frame in frames.values() for name in frame.names}
        lists = _read_lists(places[""].root / _LISTS, names, images)
    return frames, lists


def _list_files(places):
    """Returns the images and annotations of all places by their names, and the names of each."""
    images, annotated, splits = {}, {}, {}
    for key, place in places.items():
        prefix = f"{key}/" if key else ""
        found = _files(place.images, *IMAGE_ENDINGS)
        images |= {prefix + stem: paths for stem, paths in found.items()}
        found = _files(place.annotations, ".xml")
        files = {prefix + stem: paths[0] for stem, paths in found.items()}
        annotated |= files
        splits[key] = list(files)
    return images, annotated, splits


@dataclasses.dataclass(frozen=True)
class _Place:
    """Folders of annotations and of their images, in a common folder."""

    root: pathlib.Path
    annotations: pathlib.Path
    images: pathlib.Path


def _find_places(root):
    """Returns the `_Place` of each split's folder, or that of the data set as ""."""
    place = _place(root)
    if place:
        return {"": place}
    inside = {
        folder.name: _place(folder)
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }
    inside = {name: place for name, place in inside.items() if place}
    named = {name: place for name, place in inside.items() if split_kind(name)}
    if named:
        return named
    if len(inside) == 1:
        return {"": next(iter(inside.values()))}
    found = f"several data sets: {', '.join(inside)}" if inside else "no annotation"
    raise ValueError(
        f"folder {root} must be in PASCAL VOC form (Annotations/*.xml beside JPEGImages/, lists in "
        f"{_LISTS}/) or hold a COCO json. Received: a folder with {found}"
    )


def _place(folder):
    by_name = {entry.name.lower(): entry for entry in folder.iterdir() if entry.is_dir()}
    for name in _ANNOTATIONS:
        if name in by_name and any(by_name[name].glob("*.xml")):
            images = [by_name[each] for each in _IMAGES if each in by_name]
            return _Place(folder, by_name[name], images[0] if images else folder)
    if any(folder.glob("*.xml")):
        images = [by_name[each] for each in _IMAGES if each in by_name]
        return _Place(folder, folder, images[0] if images else folder)
    return None


def _files(folder, *endings):
    """Returns the files of a folder with some endings: lists of them by the name without it."""
    found = {}
    with os.scandir(folder) as entries:
        # In one order on every file system, because images are held out by their places.
        for entry in sorted(entries, key=lambda entry: entry.name):
            # Not by `pathlib`, which would take seconds for many files.
            stem, point, ending = entry.name.rpartition(".")
            if stem and point + ending.lower() in endings and not stem.startswith("."):
                found.setdefault(stem, []).append(entry.path)
    return found


def _read_lists(folder, class_names, files):
    """Returns the names of images in the lists of the splits, without those of a class."""
    lists = {}
    for path in sorted(folder.glob("*.txt")):
        name, _, end = path.stem.rpartition("_")
        if name in class_names and split_kind(end):
            continue
        # Some editors begin a file with a byte order mark.
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        names = [_listed(line, files) for line in lines]
        if names:
            lists[path.stem] = list(dict.fromkeys(names))
    return lists


def _listed(line, files):
    """Returns the name of the image in a line of a list, which may have its ending."""
    # A name may itself end in a space and a digit.
    for name in (line, _LISTED.fullmatch(line)[1]):
        stem, point, ending = name.rpartition(".")
        if name in files:
            return name
        if stem in files and point + ending.lower() in IMAGE_ENDINGS:
            return stem
    return name


def _parse(path, images, bad, doubtful):
    """Returns the `Annotation` in a file, or None after adding a line about it to `bad`.

    Args:
        path: Str, path of the file.
        images: Sequence of str, paths of the images of its name, which differ in their endings.
        bad: List that gets a line about a file that cannot be read.
        doubtful: List that gets the image that was taken where the file does not tell which.
    """
    try:
        root = ElementTree.parse(path).getroot()
        found = [_object(element) for element in root.findall("object")]
    except (ElementTree.ParseError, LookupError, OSError, UnicodeError, ValueError) as error:
        bad.append(f"annotation {readable_name(path)} cannot be read: {error}")
        return None
    size = None
    width, height = root.findtext("size/width"), root.findtext("size/height")
    try:
        size = (float(width), float(height))
    except (TypeError, ValueError):
        size = None  # the image itself has a size
    named = (root.findtext("filename") or "").strip()
    image = next((each for each in images if pathlib.Path(each).name == named), None)
    if image is None and images:
        image = images[0]
        doubtful += [image] if len(images) > 1 else []
    return Annotation(
        image or "",
        [box for box, *_ in found],
        [name for _, name, _ in found],
        size,
        [difficult for *_, difficult in found],
        [False] * len(found),
    )


def _object(element):
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object has no name")
    texts = [element.findtext(f"bndbox/{corner}") for corner in _CORNERS]
    try:
        box = tuple(float(text) for text in texts)
    except (TypeError, ValueError):
        box = (math.nan,)
    if not all(map(math.isfinite, box)):
        raise ValueError(
            f"the box of '{name}' must have the numbers {', '.join(_CORNERS)}. "
            f"Received: {', '.join(str(text) for text in texts)}"
        )
    return box, name, (element.findtext("difficult") or "0").strip().lower() in ("1", "true")


def _missing(chosen, parsed, places, on_bad_image):
    def path_of(key, kind):
        # Where folders have splits, names of images have that folder before them.
        prefix, _, stem = ("", "", key) if "" in places else key.rpartition("/")
        return getattr(places[prefix], kind) / stem

    without_file = [f"{path_of(key, 'annotations')}.xml" for key in chosen if key not in parsed]
    without_image = [
        str(path_of(key, "images")) for key in chosen if parsed.get(key) and not parsed[key].path
    ]
    return (
        *left_out(without_file, "annotations are missing", on_bad_image),
        *left_out(without_image, "images are missing", on_bad_image),
    )


def _without_annotation(images, annotated, split, places, on_bad_image):
    """Returns a line about images that no list and no annotation names.

    Args:
        images: Dict from names to paths of images.
        annotated: Dict from names to paths of annotations.
        split: Str, the split that is opened, which is that of a folder where folders have splits.
        places: Dict of `_find_places`.
        on_bad_image: `"skip"` or `"raise"`.
    """
    inside = max((key for key in places if split.startswith(key)), key=len, default="")
    prefix = f"{inside}/" if inside else ""
    names = [key for key in images if key not in annotated and key.startswith(prefix)]
    return left_out([images[key][0] for key in names], "images have no annotation", on_bad_image)
