"""Lists the image files of class folders and says what it leaves out."""

import collections
import concurrent.futures
import os
import pathlib
import unicodedata

from keras_dsnet.data.encoded_image import read_header

IMAGE_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp")
# A file with one of these endings is not trained on, even if it is an image.
_COPY_ENDINGS = (".bak", ".tmp", ".old", ".orig", ".part", ".crdownload", ".swp")
# Thumbnails and lists that desktops and file servers leave in folders. Names with a dot in front
# are left out too.
_LEFT_BY_PROGRAMS = (
    *("__macosx", "__pycache__", "@eadir", "$recycle.bin", "#recycle", "lost+found", "thumbs.db"),
    *("ehthumbs.db", "desktop.ini", "picasa.ini", "icon\r"),
)
_NAMES_SHOWN = 3
_BLOCK = 256
_THREADS = 16


def is_left_by_programs(name):
    """Whether a file or folder is hidden or one that programs leave behind, such as Thumbs.db."""
    return name[0] == "." or name[-1] == "~" or name.lower() in _LEFT_BY_PROGRAMS


def readable_name(path):
    """A path as text that can be printed, whatever bytes the file's name is made of."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def subfolders(folder):
    """The folders in a folder, links to folders included.

    Args:
        folder: path of the folder.

    Returns:
        Dict from names, in Unicode's composed form, to paths, sorted by name. Names that are all
        numbers are sorted by value: 2 comes before 10.

    Raises:
        ValueError: the folder cannot be read, a name is not one line of UTF-8, or two are the same.
    """
    found = {}
    for entry in _entries(folder):
        if _is_folder(entry):
            name = unicodedata.normalize("NFC", entry.name)
            if readable_name(name) != name:
                raise ValueError(
                    f"the name of folder {readable_name(entry.path)} must be UTF-8, because "
                    f"classes are called by it. Received: {os.fsencode(entry.name)!r}"
                )
            if len(name.splitlines()) > 1 or not name.strip():
                raise ValueError(
                    f"the name of a folder must be one line that is not blank. Received: {name!r}"
                )
            if name in found:
                raise ValueError(
                    f"folder {readable_name(folder)} holds two folders that are both written "
                    f"'{name}', in different codes of Unicode: rename one"
                )
            found[name] = pathlib.Path(entry.path)
    is_numeric = all(name.isascii() and name.isdecimal() for name in found)
    order = sorted(found, key=(lambda name: (int(name), name)) if is_numeric else None)
    return {name: found[name] for name in order}


def holds_images(folder):
    """Whether image files lie directly in a folder."""
    for entry in _entries(folder):
        ending = _ending(entry.name)
        if _is_file(entry) and (ending in IMAGE_ENDINGS or (not ending and _is_image(entry.path))):
            return True
    return False


class ClassListing:
    """The image files below the class folders of one split.

    Hidden files and what programs leave behind do not count. Linked folders are followed, but not
    into a folder that is listed already. A file whose ending is not that of an image is opened:
    its content decides.

    Args:
        classes: dict from class names to paths of folders, in index order.
        root: path of the split's folder, which links must not lead back to.

    Attributes:
        files: list of `(path, label)`, in the order of classes and paths.
        notes: lines about what was left out.

    Raises:
        ValueError: a class folder holds no image, or two classes share a folder.
    """

    def __init__(self, classes, root):
        self.files = []
        self._skipped = collections.defaultdict(list)
        self._owners = {}
        self._root_ids = _ancestors(root)
        for label, (name, folder) in enumerate(classes.items()):
            self.files += [(path, label) for path in self._images_of(name, folder)]

    @property
    def folder_ids(self):
        """Identities of all folders that images come from: device and inode."""
        return frozenset(self._owners)

    @property
    def notes(self):
        return tuple(
            f"{len(paths)} {what} skipped: {some_names(paths)}"
            for what, paths in sorted(self._skipped.items())
        )

    def _images_of(self, name, folder):
        named, unknown = [], []
        self._walk(name, folder, named, unknown)
        headers = read_headers(unknown)
        for path, header in zip(unknown, headers, strict=True):
            if header is not None and header.format is not None and header.problem is None:
                named.append(path)
            else:
                self._skip(path, header)
        if not named:
            found = f": found {'; '.join(self.notes)}" if unknown else ""
            raise ValueError(
                f"class folder {folder} holds no image: expected files that end in "
                f"{', '.join(IMAGE_ENDINGS)}{found}"
            )
        # In the order of the parts of the paths: no character comes before a separator.
        return sorted(named, key=lambda path: path.replace(os.sep, "\0"))

    def _walk(self, name, folder, named, unknown):
        identity = _identity(folder)
        owner = self._owners.setdefault(identity, name)
        if owner != name:
            raise ValueError(
                f"classes must not share images: folder {readable_name(folder)} is in class "
                f"'{name}' and, by a link, in class '{owner}'"
            )
        for entry in _entries(folder):
            if _is_folder(entry):
                identity = _identity(entry.path)
                if identity in self._root_ids or self._owners.get(identity) == name:
                    self._skipped["links to folders that are listed already"].append(entry.path)
                else:
                    self._walk(name, entry.path, named, unknown)
            elif not _is_file(entry):
                what = "broken links" if entry.is_symlink() else "entries that are no files"
                self._skipped[what].append(entry.path)
            elif entry.name.lower().endswith(IMAGE_ENDINGS):
                named.append(entry.path)
            elif entry.name.lower().endswith(_COPY_ENDINGS):
                self._skip(entry.path, None)
            else:
                unknown.append(entry.path)

    def _skip(self, path, header):
        ending = readable_name(_ending(path)) or "no ending"
        if header is not None and header.problem:
            self._skipped[f"files with {ending} ({header.problem})"].append(path)
        else:
            self._skipped[f"files with {ending} (not images)"].append(path)


def read_headers(paths):
    """Reads the headers of many image files in threads.

    Args:
        paths: list of file names.

    Returns:
        List of `ImageHeader`, with None for a file that cannot be read.
    """
    blocks = [paths[start : start + _BLOCK] for start in range(0, len(paths), _BLOCK)]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        return [header for block in threads.map(_headers_of, blocks) for header in block]


def some_names(paths):
    """The first names of a list of paths."""
    names = [readable_name(path) for path in paths[:_NAMES_SHOWN]]
    return ", ".join(names if len(paths) <= _NAMES_SHOWN else [*names, "..."])


def _headers_of(paths):
    headers = []
    for path in paths:
        try:
            headers.append(read_header(path))
        except OSError:
            headers.append(None)
    return headers


def _is_image(path):
    (header,) = _headers_of([path])
    return header is not None and header.format is not None


def _entries(folder):
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not is_left_by_programs(entry.name)]
    except OSError as error:
        raise ValueError(
            f"folder {readable_name(folder)} cannot be read: {error.strerror}"
        ) from error


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry):
    try:
        return entry.is_file()
    except OSError:
        return False


def _identity(folder):
    status = pathlib.Path(folder).stat()
    return status.st_dev, status.st_ino


def _ancestors(folder):
    folder = pathlib.Path(folder).resolve()
    return {_identity(parent) for parent in (folder, *folder.parents)}


def _ending(path):
    return pathlib.PurePath(path).suffix.lower()
