"""Data sets that are folders of class folders of images."""

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from keras_dsnet.data.decoding import decode_image
from keras_dsnet.data.file_source import FileSource, unreadable
from keras_dsnet.data.image_source import check_classes
from keras_dsnet.data.splits import slice_of

HOLD_OUT_FRACTION = 0.1
HOLD_OUT_SEED = 0
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
# Decoding ten thousand photographs takes a minute on one core; decoding ImageNet, hours.
FULL_CHECK_FILES = 10_000
_EVAL_FOLDERS = ("val", "validation", "test")
_THREADS = 16

_log = logging.getLogger(__name__)


def load_folder(root, split, spec, classes, on_bad_image):
    """Opens a folder of class folders.

    With `train/` and `val/`, `validation/` or `test/` in it, these are the splits. Otherwise a
    tenth of the images of each class (`HOLD_OUT_FRACTION`, at least one) is held out as the split
    `test`, always the same (`HOLD_OUT_SEED`). Images come in a fixed shuffled order, so that a
    slice of a split has images of all classes.

    Up to `FULL_CHECK_FILES` files are decoded once here; of more, JPEG files are judged by how they
    begin and end.

    Args:
        root: `pathlib.Path` of the folder.
        split: `"train"` or `"eval"`.
        spec: a split in TFDS syntax that overrides `split`, or None.
        classes: number of classes of the network, or None.
        on_bad_image: `"skip"` leaves unreadable images out and logs them; `"raise"` raises.

    Returns:
        A `FileSource`.

    Raises:
        ValueError: fewer than two class folders or more than `classes`, an empty class folder, no
            such split, no readable image, or an unreadable one where `on_bad_image="raise"`.
    """
    splits, class_names = _splits(root)
    check_classes(str(root), len(class_names), classes)
    if spec:
        lengths = {name: len(files) for name, files in splits.items()}
        key, chosen = slice_of(spec, lengths, str(root))
        files = splits[key][chosen]
    else:
        key = "train" if split == "train" else next(name for name in splits if name != "train")
        files = splits[key]
    files = _readable(files, root, on_bad_image)
    paths = [str(path) for path, _ in files]
    labels = [label for _, label in files]
    return FileSource(str(root), paths, labels, class_names, on_bad_image)


def _splits(root):
    train = root / "train"
    if not train.is_dir() or not any(entry.is_dir() for entry in train.iterdir()):
        return _hold_out(root)
    folders = [root / name for name in _EVAL_FOLDERS if (root / name).is_dir()]
    if not folders:
        return _hold_out(train)
    class_names = _class_names(train)
    splits = {"train": _labelled_files(train, class_names)}
    for folder in folders:
        unknown = sorted(set(_class_names(folder)) - set(class_names))
        if unknown:
            raise ValueError(f"class folder {folder / unknown[0]} has no counterpart in {train}")
        splits[folder.name] = _labelled_files(folder, class_names)
    return splits, class_names


def _hold_out(root):
    class_names = _class_names(root)
    files = _labelled_files(root, class_names)
    labels = np.array([label for _, label in files])
    held_out = np.zeros(len(files), bool)
    for label, name in enumerate(class_names):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise ValueError(
                f"class folder {root / name} must hold two images or more, because one is held "
                f"out for evaluation. Received: {len(members)}"
            )
        # The files are in a fixed shuffled order, so the first ones of a class are any ones.
        held_out[members[: max(1, round(len(members) * HOLD_OUT_FRACTION))]] = True
    train = [file for file, held in zip(files, held_out, strict=True) if not held]
    test = [file for file, held in zip(files, held_out, strict=True) if held]
    return {"train": train, "test": test}, class_names


def _class_names(root):
    names = sorted(
        entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] not in "._"
    )
    if len(names) < 2:
        found = f"only '{names[0]}'" if names else "none"
        raise ValueError(
            f"folder {root} must hold two class folders of images or more. Received: {found}"
        )
    return names


def _labelled_files(root, class_names):
    files = []
    for label, name in enumerate(class_names):
        if not (root / name).is_dir():
            continue
        images = sorted(
            path
            for path in (root / name).rglob("*")
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        )
        if not images:
            raise ValueError(
                f"class folder {root / name} holds no image: expected files that end in "
                f"{', '.join(SUFFIXES)}"
            )
        files += [(path, label) for path in images]
    order = np.random.default_rng(HOLD_OUT_SEED).permutation(len(files))
    return [files[index] for index in order]


def _readable(files, root, on_bad_image):
    check = _decodes if len(files) <= FULL_CHECK_FILES else _looks_whole
    with ThreadPoolExecutor(_THREADS) as threads:
        verdicts = list(threads.map(check, [path for path, _ in files]))
    bad = [path for (path, _), good in zip(files, verdicts, strict=True) if not good]
    if bad and on_bad_image == "raise":
        raise ValueError(unreadable(bad[0]))
    if len(bad) == len(files):
        raise ValueError(f"none of the {len(files)} images in {root} can be read")
    for path in bad:
        _log.warning("%s; skipped", unreadable(path))
    if bad:
        _log.warning("skipped %d of %d images in %s", len(bad), len(files), root)
    return [file for file, good in zip(files, verdicts, strict=True) if good]


def _decodes(path):
    try:
        decode_image(path.read_bytes())
    except (tf.errors.InvalidArgumentError, OSError):
        return False
    return True


def _looks_whole(path):
    try:
        with path.open("rb") as file:
            begin = file.read(3)
            file.seek(-2, 2)
            end = file.read()
    except OSError:
        return False
    return (begin == b"\xff\xd8\xff" and end == b"\xff\xd9") or _decodes(path)
