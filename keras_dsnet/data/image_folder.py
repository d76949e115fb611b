"""Data sets that are folders of class folders of images."""

import logging
import pathlib

import numpy as np
import tensorflow as tf

from keras_dsnet.data.file_source import FileSource
from keras_dsnet.data.splits import slice_of

HOLD_OUT_FRACTION = 0.1
HOLD_OUT_SEED = 0
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
_EVAL_FOLDERS = ("val", "validation", "test")

_log = logging.getLogger(__name__)


def load_folder(root, split, spec, on_bad_image):
    """Opens a folder of class folders.

    With `train/` and `val/`, `validation/` or `test/` in it, these are the splits. Otherwise every
    tenth image of each class (`HOLD_OUT_FRACTION`, at least one) is held out for evaluation, chosen
    by `HOLD_OUT_SEED`, always the same. Images come in a fixed shuffled order, so that a slice of a
    split has images of all classes.

    Args:
        root: the folder.
        split: `"train"` or `"eval"`.
        spec: a split in TFDS syntax that overrides `split`, or None.
        on_bad_image: `"skip"` leaves unreadable images out and logs them; `"raise"` raises.

    Returns:
        A `FileSource`.

    Raises:
        ValueError: fewer than two class folders, an empty class folder, an unreadable image where
            `on_bad_image="raise"`, or no such split.
    """
    root = pathlib.Path(root)
    splits, class_names = _splits(root)
    key = split if split == "train" else next(key for key in splits if key != "train")
    if spec:
        key, chosen = slice_of(spec, {key: len(files) for key, files in splits.items()}, str(root))
    else:
        chosen = slice(None)
    files = _readable(splits[key][chosen], root, on_bad_image)
    paths = [str(path) for path, _ in files]
    return FileSource(str(root), paths, [label for _, label in files], class_names)


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
            raise ValueError(f"class folder {root / name} needs 2 images or more: one is held out")
        # Files are in a fixed shuffled order: the first ones of a class are a random choice.
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
            if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
        )
        if not images:
            raise ValueError(f"class folder {root / name} holds no image ({', '.join(_SUFFIXES)})")
        files += [(path, label) for path in images]
    order = np.random.default_rng(HOLD_OUT_SEED).permutation(len(files))
    return [files[index] for index in order]


def _readable(files, root, on_bad_image):
    good = []
    bad = 0
    for path, label in files:
        try:
            tf.io.decode_image(path.read_bytes(), channels=3, expand_animations=False)
            good.append((path, label))
        except (tf.errors.InvalidArgumentError, OSError) as error:
            line = f"image {path} cannot be read: expected a JPEG, PNG, BMP or GIF file"
            if on_bad_image == "raise":
                raise ValueError(line) from error
            bad += 1
            _log.warning("%s; skipped", line)
    if bad:
        _log.warning("%d of %d images in %s cannot be read; skipped", bad, len(files), root)
    return good
