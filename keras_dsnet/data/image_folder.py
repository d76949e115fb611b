"""Folders of class folders, opened as data sets."""

import logging
import os
import pathlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from keras_dsnet.data.class_folders import (
    ClassListing,
    read_headers,
    readable_name,
    some_names,
)
from keras_dsnet.data.encoded_image import UPRIGHT, decode_image
from keras_dsnet.data.file_source import FileSource, unreadable
from keras_dsnet.data.folder_layout import find_layout
from keras_dsnet.data.image_source import check_classes, resolve_split

HOLD_OUT_FRACTION = 0.1
HOLD_OUT_SEED = 0
_WORDS = "words.txt"  # of Tiny-ImageNet: names of its folders by WordNet
# Decoding ten thousand photographs takes a minute on one core. Decoding ImageNet takes hours.
FULL_CHECK_FILES = 10_000
_NAMES_LOGGED = 20
# Larger images are decoded one at a time, because many at once would fill the memory.
_LARGE_PIXELS = 2**24
_THREADS = 16

_log = logging.getLogger(__name__)


def load_folder(
    root: pathlib.Path, split: str, spec: str | None, classes: int | None, on_bad_image: str
) -> FileSource:
    """Opens a folder of class folders.

    Folders named `train`, `val` and `test`, or similarly (see `folder_layout.split_kind`), are the
    splits. `"eval"` is the validation split if there is one, else the test split. If there is
    neither, a tenth of the images of each class (`HOLD_OUT_FRACTION`, at least one image) is held
    out as the split `test`; `HOLD_OUT_SEED` makes it always the same. The images have a fixed
    shuffled order, so that a slice of a split has images of all classes.

    The classes are the class folders sorted by name, capital letters first. If all names are
    numbers they are sorted by value, so that the folders 0 to 10 are the classes 0 to 10. If
    `words.txt` in the folder has a line `folder, tab, words` for each of them, as that of
    Tiny-ImageNet does, the classes are named by the first of their words.

    Up to `FULL_CHECK_FILES` files are decoded once. In a larger split only the first and last bytes
    of a file are checked, unless they look damaged.

    Args:
        root: `pathlib.Path` of the folder.
        split: `"train"` or `"eval"`.
        spec: Str, a split in TFDS syntax that overrides `split`, or None. Splits are named by their
            folders, or `train`, `val` and `test`.
        classes: Int, number of classes of the network, or None.
        on_bad_image: `"skip"` to leave out and log unreadable images, `"raise"` to raise an error.

    Returns:
        `FileSource`.

    Raises:
        ValueError: The folders are ambiguous or cannot be interpreted, there are fewer than two
            class folders or more than `classes`, a class folder is empty, there is no such split
            or no readable image, or an image is unreadable and `on_bad_image` is `"raise"`.
    """
    layout = find_layout(root)
    folder_names = tuple(layout.splits[layout.training].classes)
    check_classes(str(root), len(folder_names), classes)
    class_names, name_notes = _named_classes(root, folder_names)
    lists = _SplitLists(root, layout, folder_names)
    if spec:
        key, chosen = _resolve_split(spec, lists, str(root))
    else:
        spec = key = lists.training if split == "train" else lists.evaluation
        chosen = slice(None)
    files = lists.files(key)
    split_size, files = len(files), files[chosen]
    # A class may have one image for evaluation only.
    names = class_names if split == "train" else None
    files, orientations, bad_notes = readable_files(files, root, on_bad_image, names)
    source = FileSource(
        readable_name(root),
        [path for path, _ in files],
        [label for _, label in files],
        class_names,
        on_bad_image,
        orientations=orientations,
        split=spec,
        notes=(*layout.notes, *name_notes, *lists.notes, *bad_notes),
    )
    source.split_size = split_size
    return source


def _named_classes(root, folder_names):
    """Returns the names of the classes, those of `words.txt` if it has all, and notes about it."""
    path = root / _WORDS
    if not path.is_file():
        return folder_names, ()
    words = {}
    with path.open(encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            folder, _, text = line.rstrip("\r\n").partition("\t")
            words[folder] = text.strip()
    missing = [name for name in folder_names if not words.get(name)]
    if missing:
        note = f"{path} is not used: it has no words for class folder '{missing[0]}'"
        return folder_names, (note,)
    first = [words[name].split(",")[0].strip() for name in folder_names]
    # Two of ImageNet's classes are cranes.
    names = [one if first.count(one) == 1 else words[f] for one, f in zip(first, folder_names)]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        return folder_names, (f"{path} is not used: two class folders are '{double}'",)
    return tuple(names), (f"classes have the names of {path}",)


class _SplitLists:
    """The files of the splits of a folder, each listed on first use."""

    def __init__(self, root, layout, folder_names):
        self._root = root
        self._layout = layout
        self._folder_names = folder_names
        self._files = {}
        self._folder_ids = {}
        self._notes = {}
        self._held_out = layout.evaluation is None
        self.training = layout.training or "train"
        self.evaluation = layout.evaluation or "test"
        if self._held_out:
            listing = self._listing(layout.training)
            train, test = _hold_out(listing.files, layout.splits[layout.training].classes)
            self._files = {self.training: train, self.evaluation: test}
            note = (
                f"no validation folder: {len(test)} of {len(listing.files)} images, a tenth of "
                f"each class, are held out of training as the split '{self.evaluation}'"
            )
            self._notes = {"": (note, *listing.notes)}
        numeric = list(folder_names) != sorted(folder_names)
        self._order_note = (f"classes of {root} are in the order of their numbers",) * numeric

    @property
    def names(self):
        """Names of the splits that can be used."""
        return list(self._files if self._held_out else self._layout.splits)

    @property
    def notes(self):
        """Lines about the files that were left out of the listed splits."""
        return (*self._order_note, *(note for notes in self._notes.values() for note in notes))

    def key_of(self, name):
        """Returns the key of the split that a user calls `name`.

        Raises:
            ValueError: There is no such split, or its folder cannot be used.
        """
        key = name if name in self._files else self._layout.key_of(name)
        if key in self._layout.problems:
            raise ValueError(self._layout.problems[key])
        if key not in self.names:
            splits = ", ".join(f"'{each}'" for each in self.names)
            raise ValueError(
                f"split '{name}' of data set '{self._root}' is not valid: it has {splits}"
            )
        return key

    def files(self, key):
        """Returns `(path, label)` of all images of a split, in a fixed shuffled order."""
        if key not in self._files:
            folder = self._layout.splits[key]
            if folder.annotations:
                files, self._notes[key] = _annotated_files(folder, self._folder_names)
            else:
                listing = self._listing(key)
                files, self._notes[key] = listing.files, listing.notes
            self._files[key] = shuffled_files(files)
        return self._files[key]

    def _listing(self, key):
        folder = self._layout.splits[key]
        listing = ClassListing(folder.classes, folder.path)
        for other, ids in self._folder_ids.items():
            if ids & listing.folder_ids:
                raise ValueError(
                    f"splits must not share images, but a link makes a folder part of '{other}' "
                    f"and '{key}'"
                )
        self._folder_ids[key] = listing.folder_ids
        self._check_links(key, listing)
        return listing

    def _check_links(self, key, listing):
        """Raises an error where links make images of the training split part of another one."""
        training = self._layout.training
        if not listing.links or key == training or self._layout.splits[training].annotations:
            return
        if training not in self._folder_ids:
            self.files(training)
        places = {os.path.realpath(path) for path, _ in self._files[training]}
        shared = [path for path in listing.links if os.path.realpath(path) in places]
        if shared:
            raise ValueError(
                f"splits must not share images, but a link makes one of '{training}' part of "
                f"'{key}': {shared[0]}"
            )


def _resolve_split(spec, lists, dataset):
    name = re.match(r"[^\[+]*", spec).group()
    key = lists.key_of(name.strip())
    # TFDS accepts only letters, digits and underscores in the name of a split. The other splits are
    # not listed: one may have a folder that cannot be used.
    valid = re.sub(r"\W", "_", key)
    _, chosen = resolve_split(valid + spec[len(name) :], {valid: len(lists.files(key))}, dataset)
    return key, chosen


def shuffled_files(files: Sequence) -> list:
    """Returns files in the fixed order from which the split that is held out is taken."""
    order = np.random.default_rng(HOLD_OUT_SEED).permutation(len(files))
    return [files[index] for index in order]


def _hold_out(files, classes):
    files = shuffled_files(files)
    labels = np.array([label for _, label in files])
    held_out = np.zeros(len(files), bool)
    for label, folder in enumerate(classes.values()):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise ValueError(
                f"class folder {folder} must hold two images or more, because one is held "
                f"out for evaluation. Received: {len(members)}"
            )
        # The files have a fixed shuffled order, so the first ones of a class are a random sample.
        held_out[members[: max(1, round(len(members) * HOLD_OUT_FRACTION))]] = True
    train = [file for file, held in zip(files, held_out, strict=True) if not held]
    test = [file for file, held in zip(files, held_out, strict=True) if held]
    return train, test


def _annotated_files(folder, folder_names):
    """Returns the images in a list of lines `image name, class, ...`, the form of Tiny-ImageNet."""
    labels = {name: label for label, name in enumerate(folder_names)}
    images = folder.path / "images"
    files, missing = [], []
    with folder.annotations.open(encoding="utf-8", errors="backslashreplace") as lines:
        for number, line in enumerate(lines, start=1):
            fields = line.rstrip("\n").split("\t")
            if not line.strip():
                continue
            if len(fields) < 2 or fields[1] not in labels:
                raise ValueError(
                    f"line {number} of {folder.annotations} must be an image name, a tab and one "
                    f"of the class folders. Received: {line.strip()!r}"
                )
            path = images / fields[0]
            (files if path.is_file() else missing).append((str(path), labels[fields[1]]))
    if not files:
        raise ValueError(f"folder {images} holds none of the images of {folder.annotations}")
    paths = [path for path, _ in missing]
    notes = [f"{len(paths)} images of the list are missing: {some_names(paths)}"] if paths else []
    return files, notes


def readable_files(files, root, on_bad_image, class_names):
    """Reads or decodes image files, and leaves out those that cannot be read.

    Args:
        files: List of `(path, label)`.
        root: Path of the data set's folder, for messages.
        on_bad_image: `"skip"` to leave out and log unreadable images, `"raise"` to raise an error.
        class_names: Sequence of str, one name per label, of which each must keep an image. None if
            a label may lose all.

    Returns:
        `(files, orientations, notes)`: the readable files, their EXIF orientations, or None if all
        are upright, and lines about the others.

    Raises:
        ValueError: No image of a class is readable, or one is unreadable and `on_bad_image` is
            `"raise"`.
    """
    headers = read_headers([path for path, _ in files])
    decodes = _decode_all(files, headers)
    kept, orientations, bad = [], [], []
    for (path, label), header in zip(files, headers, strict=True):
        if header is not None and header.problem is None and decodes.get(path, True):
            kept.append((path, label))
            orientations.append(header.orientation)
        else:
            bad.append((path, label, header.problem if header else None))
    orientations = orientations if any(value != UPRIGHT for value in orientations) else None
    if not bad:
        return kept, orientations, ()
    lines = [unreadable(path, problem) for path, _, problem in bad]
    if on_bad_image == "raise":
        raise ValueError(lines[0])
    if not kept:
        raise ValueError(f"none of the {len(files)} images in {root} can be read: {lines[0]}")
    lost = {label for _, label, _ in bad} - {label for _, label in kept}
    if lost and class_names is not None:
        name = class_names[min(lost)]
        raise ValueError(f"none of the images of class '{name}' in {root} can be read: {lines[0]}")
    for line in lines[:_NAMES_LOGGED]:
        _log.warning("%s; skipped", line)
    note = f"skipped {len(bad)} of {len(files)} images in {readable_name(root)}"
    _log.warning(note)
    return kept, orientations, (f"{note}: {some_names([path for path, *_ in bad])}",)


def _decode_all(files, headers):
    """Decodes all files, or those with a doubtful header if there are too many.

    Returns:
        Dict that maps the path of each file that was decoded to whether that succeeded.
    """
    is_small_set = len(files) <= FULL_CHECK_FILES
    small, large = [], []
    for (path, _), header in zip(files, headers, strict=True):
        if header is not None and header.problem is None:
            if is_small_set or not header.is_sound:
                is_large = header.height * header.width > _LARGE_PIXELS
                (large if is_large else small).append(path)
    with ThreadPoolExecutor(_THREADS) as threads:
        decodes = dict(zip(small, threads.map(_decodes, small), strict=True))
    return decodes | {path: _decodes(path) for path in large}


def _decodes(path):
    try:
        decode_image(tf.io.read_file(os.fsencode(path)))
    except tf.errors.OpError:
        return False
    return True
