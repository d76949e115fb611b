"""Class folders, listed with their image files."""

import collections
import concurrent.futures
import os
import pathlib
import unicodedata

from keras_dsnet.data.encoded_image import read_header
from keras_dsnet.utils.shown_names import first_names

IMAGE_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp")
# Files with these endings are left out even if they hold an image.
_COPY_ENDINGS = (".bak", ".tmp", ".old", ".orig", ".part", ".crdownload", ".swp")
# Thumbnails and lists that desktops and file servers write into folders. Names that begin with a
# dot are left out too.
_WRITTEN_BY_PROGRAMS = (
    *("__macosx", "__pycache__", "@eadir", "$recycle.bin", "#recycle", "lost+found", "thumbs.db"),
    *("ehthumbs.db", "desktop.ini", "picasa.ini", "icon\r"),
)
_BLOCK = 256
_THREADS = 16


class ClassListing:
    """The image files in the class folders of one split.

    Hidden files, and files that desktops and file servers write, are ignored. Linked folders are
    followed, but not into a folder that is listed already. A file without the ending of an image
    is opened, and its content decides.

    Args:
        classes: Dict that maps class names to the paths of folders, in index order.
        root: Path of the split's folder. Links that lead back to it are not followed.

    Attributes:
        files: List of `(path, label)`, in the order of classes and paths.
        links: List of the paths of the linked folders and files.

    Raises:
        ValueError: A class folder holds no image, or two classes share a folder.
    """

    def __init__(self, classes: dict[str, pathlib.Path], root: pathlib.Path) -> None:
        self.files: list[tuple[str, int]] = []
        self.links: list[str] = []
        self._skipped: dict[str, list[str]] = collections.defaultdict(list)
        self._owners: dict[tuple[int, int], str] = {}
        self._root_ids = _ancestors(root)
        for label, (name, folder) in enumerate(classes.items()):
            self.files += [(path, label) for path in self._images_of(name, folder)]

    @property
    def folder_ids(self) -> frozenset:
        """The device and inode of every folder that holds images."""
        return frozenset(self._owners)

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines about the files and folders that were left out."""
        return tuple(
            f"{len(paths)} {kind} skipped: {some_names(paths)}"
            for kind, paths in sorted(self._skipped.items())
        )

    def _images_of(self, name, folder):
        images, unknown = [], []
        self._walk(name, folder, images, unknown)
        headers = read_headers(unknown)
        for path, header in zip(unknown, headers, strict=True):
            if header is not None and header.format is not None and header.problem is None:
                images.append(path)
            else:
                self._skip(path, header)
        if not images:
            found = f": found {'; '.join(self.notes)}" if unknown else ""
            raise ValueError(
                f"class folder {folder} holds no image: expected files that end in "
                f"{', '.join(IMAGE_ENDINGS)}{found}"
            )
        # The separator sorts before every character, so that paths are ordered part by part.
        return sorted(images, key=lambda path: path.replace(os.sep, "\0"))

    def _walk(self, name, folder, images, unknown):
        """Adds the files below a folder to `images` or, without an image's ending, to `unknown`."""
        identity = _identity(folder)
        owner = self._owners.setdefault(identity, name)
        if owner != name:
            raise ValueError(
                f"classes must not share images: folder {readable_name(folder)} is in class "
                f"'{name}' and, by a link, in class '{owner}'"
            )
        for entry in _entries(folder):
            if entry.is_symlink():
                self.links.append(entry.path)
            if _is_folder(entry):
                identity = _identity(entry.path)
                if identity in self._root_ids or self._owners.get(identity) == name:
                    self._skipped["links to folders that are listed already"].append(entry.path)
                else:
                    self._walk(name, entry.path, images, unknown)
            elif not _is_file(entry):
                kind = "broken links" if entry.is_symlink() else "entries that are not files"
                self._skipped[kind].append(entry.path)
            elif entry.name.lower().endswith(IMAGE_ENDINGS):
                images.append(entry.path)
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


def subfolders(folder: str | os.PathLike) -> dict[str, pathlib.Path]:
    """Returns the folders in a folder, links to folders included.

    Args:
        folder: Path of the folder.

    Returns:
        Dict that maps names, in Unicode's composed form, to paths, sorted by name. If all names are
        numbers they are sorted by value: 2 comes before 10.

    Raises:
        ValueError: The folder cannot be read, a name is not one line of UTF-8, or two names are the
            same.
    """
    found = {}
    for entry in _entries(folder):
        if _is_folder(entry):
            name = unicodedata.normalize("NFC", entry.name)
            if readable_name(name) != name:
                raise ValueError(
                    f"the name of folder {readable_name(entry.path)} must be UTF-8, because "
                    f"classes are named after it. Received: {os.fsencode(entry.name)!r}"
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


def holds_images(folder: str | os.PathLike) -> bool:
    """Returns whether a folder directly holds image files."""
    for entry in _entries(folder):
        ending = _ending(entry.name)
        if _is_file(entry) and (ending in IMAGE_ENDINGS or (not ending and _is_image(entry.path))):
            return True
    return False


def _is_image(path):
    (header,) = _headers_of([path])
    return header is not None and header.format is not None


def read_headers(paths):
    """Reads the headers of many image files in threads.

    Args:
        paths: List of file names.

    Returns:
        List of `ImageHeader`, with None for each file that cannot be read.
    """
    blocks = [paths[start : start + _BLOCK] for start in range(0, len(paths), _BLOCK)]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        return [header for block in threads.map(_headers_of, blocks) for header in block]


def _headers_of(paths):
    headers = []
    for path in paths:
        try:
            headers.append(read_header(path))
        except OSError:
            headers.append(None)
    return headers


def _entries(folder):
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not _is_ignored(entry.name)]
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


def _is_ignored(name):
    """Returns whether a name is hidden or one that programs write, such as Thumbs.db."""
    return name[0] == "." or name[-1] == "~" or name.lower() in _WRITTEN_BY_PROGRAMS


def some_names(paths):
    """Returns the first names of a list of paths as text."""
    return first_names([readable_name(path) for path in paths])


def readable_name(path):
    """Returns a path as text that can be printed, whatever the bytes of the file's name."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
