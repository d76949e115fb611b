"""The layout of a data set's folder: its splits with their class folders."""

import dataclasses
import pathlib
import re

from keras_dsnet.data.class_folders import holds_images, subfolders
from keras_dsnet.utils.shown_names import first_and_last_names

_SPLIT_WORDS = {
    "train": ("train", "training", "trn", "trainval"),
    "validation": ("val", "valid", "validation", "validate", "dev", "devel", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "holdout", "heldout"),
}
_SPLIT_OF_WORD = {word: split for split, words in _SPLIT_WORDS.items() for word in words}
_FILLERS = ("set", "data", "dataset", "image", "images", "img", "imgs", "split", "seg", "ilsvrc")
_WRAPPERS = ("images", "image", "imgs", "img", "data", "dataset")
_ANNOTATIONS = "val_annotations.txt"  # of Tiny-ImageNet
_NAMES_SHOWN = 5


@dataclasses.dataclass
class FolderLayout:
    """The splits of a data set that is a folder.

    Attributes:
        splits: Dict that maps the names of folders to `SplitFolder` objects. Its only key is "" if
            the class folders are in the data set's folder itself.
        training: Key of the training split.
        evaluation: Key of the split that is evaluated by default, or None if images must be held
            out of the training split.
        problems: Dict that maps the names of split folders that cannot be used to the reasons.
        notes: Tuple of lines about folders that are not used.
    """

    splits: dict
    training: str
    evaluation: str | None = None
    problems: dict = dataclasses.field(default_factory=dict)
    notes: tuple = ()

    def key_of(self, name: str) -> str:
        """Returns the key of the split with a name, or else of the only split of that kind."""
        if name in self.splits or name in self.problems:
            return name
        kind = split_kind(name)
        same = [key for key in (*self.splits, *self.problems) if kind and split_kind(key) == kind]
        return same[0] if len(same) == 1 else name


@dataclasses.dataclass
class SplitFolder:
    """One split of a data set on disk.

    Attributes:
        path: Path of the folder.
        classes: Dict that maps class names to the paths of class folders, in index order. None if a
            list gives the class of each image.
        annotations: Path of that list (`val_annotations.txt` of Tiny-ImageNet), or None.
    """

    path: pathlib.Path
    classes: dict | None
    annotations: pathlib.Path | None = None


def find_layout(root: pathlib.Path) -> FolderLayout:
    """Finds the splits and the class folders of a data set.

    Args:
        root: Path of the data set's folder.

    Returns:
        `FolderLayout`.

    Raises:
        ValueError: The folders are ambiguous or cannot be interpreted.
    """
    folders = subfolders(root)
    named = {name: split_kind(name) for name in folders if split_kind(name)}
    if not named or _is_class_called_train(folders, named):
        layout = FolderLayout({"": SplitFolder(root, _classes_of(root))}, training="")
        notes = [f"folder {folders[name]} is used as a class, not as a split" for name in named]
        layout.notes = (*notes, *_same_inside(layout.splits[""].classes), *_neighbours(root))
        return layout
    return _split_layout(root, folders, named)


def _is_class_called_train(folders, named):
    """Returns whether `train` is a class beside bus and car, as in data sets of vehicles."""
    others = [path for name, path in folders.items() if name not in named]
    return (
        list(named) == ["train"]
        and len(others) > 1
        and not subfolders(folders["train"])
        and all(holds_images(path) for path in (folders["train"], *others))
    )


def _same_inside(classes):
    """Returns a note if the classes hold folders of the same names, which may be the classes."""
    inner = [set(subfolders(path)) for path in classes.values()]
    shared = set.intersection(*inner)
    if len(shared) < 2:
        return []
    return [
        f"classes are the folders {_listed(classes)}, not the folders inside each of them: "
        f"{_listed(sorted(shared))}"
    ]


def _neighbours(root):
    """Returns notes about evaluation folders beside `root` if it holds the training images."""
    root = root.absolute()
    if split_kind(root.name) != "train":
        return []
    return [
        f"folder {path} is not used: pass {root.parent} as the data set to use it"
        for name, path in subfolders(root.parent).items()
        if split_kind(name) in ("validation", "test")
    ]


def _split_layout(root, folders, named):
    by_kind = {kind: [name for name in named if named[name] == kind] for kind in _SPLIT_WORDS}
    if not by_kind["train"]:
        raise ValueError(
            f"folder {root} must hold training images in train/. Received: only {_listed(named)}"
        )
    kinds = ["train", "validation" if by_kind["validation"] else "test"]
    for kind in kinds:
        if len(by_kind[kind]) > 1:
            raise ValueError(
                f"folder {root} must hold one folder of {kind} images. Received: "
                f"{_listed(by_kind[kind])}"
            )
    needed = [by_kind[kind][0] for kind in kinds if by_kind[kind]]
    training, evaluation = (*needed, None)[:2]
    splits, problems, notes = {}, {}, []
    for name in needed + [name for name in named if name not in needed]:
        try:
            splits[name] = _split_folder(folders[name], named[name])
            if name != training:
                _check_not_shared(splits[training], splits[name])
                _check_same_classes(splits[training], splits[name])
        except ValueError as error:
            if name in needed:
                raise
            splits.pop(name, None)
            problems[name] = str(error)
            notes.append(f"folder {folders[name]} is not used: {error}")
    notes += _check_others(root, folders, named, splits[training], evaluation)
    return FolderLayout(splits, training, evaluation, problems, tuple(notes))


def _split_folder(folder, kind):
    annotations = folder / _ANNOTATIONS
    if kind != "train" and annotations.is_file():
        return SplitFolder(folder, None, annotations)
    inner = subfolders(folder)
    # Some archives unpack to train/train/<class>.
    while len(inner) == 1:
        ((name, path),) = inner.items()
        if split_kind(name) != kind and name.lower() not in _WRAPPERS:
            break
        deeper = subfolders(path)
        if not deeper:
            inner = {}
            break
        folder, inner = path, deeper
    if not inner:
        raise ValueError(f"split folder {folder} must hold class folders of images. Received: none")
    return SplitFolder(folder, _classes_of(folder))


def _classes_of(root):
    classes = subfolders(root)
    is_flat = holds_images(root)
    if len(classes) < 2:
        found = f"only '{next(iter(classes))}'" if classes else "none"
        hint = ", but images: expected one folder of images for each class" if is_flat else ""
        for path in classes.values():
            if len(subfolders(path)) > 1:
                hint = f"; did you mean {path}?"
        raise ValueError(
            f"folder {root} must hold two class folders of images or more. Received: {found}{hint}"
        )
    if is_flat:
        raise ValueError(
            f"folder {root} holds images beside its class folders {_listed(classes)}: move them "
            f"into one of these, or elsewhere"
        )
    inner = {name: subfolders(path) for name, path in classes.items()}
    for name, path in classes.items():
        if name.lower() in _WRAPPERS and len(inner[name]) > 1:
            raise ValueError(
                f"folder {root} must hold class folders of images. Received: {_listed(classes)}; "
                f"did you mean {path}?"
            )
        if len({split_kind(folder) for folder in inner[name]} - {None}) > 1:
            raise ValueError(
                f"class folder {path} holds the split folders {_listed(inner[name])}: expected "
                f"{root / 'train' / path.name} and so on"
            )
    _check_no_unknown_splits(root, inner)
    return classes


def _check_no_unknown_splits(root, inner):
    """Rejects my_train/ beside my_val/ as classes, and fold1/, fold2/ with the same folders."""
    kinds = {}
    for name in inner:
        words = _words(name)
        others = tuple(word for word in words if not _kind_of_word(word) and not word.isdecimal())
        found = [_kind_of_word(word) for word in words if _kind_of_word(word)]
        # Inside a split, a folder with exactly the name of a split is a class.
        if len(found) == 1 and not split_kind(name):
            kinds.setdefault(others, set()).add(found[0])
    if any("train" in same and len(same) > 1 for same in kinds.values()):
        raise ValueError(
            f"folders {_listed(inner)} of {root} are named almost like splits: name them train, "
            f"val and test"
        )
    folders = [set(names) for names in inner.values()]
    is_alike = any(
        len(one & two) > 1 for number, one in enumerate(folders) for two in folders[:number]
    )
    words = [[word for word in _words(name) if not word.isdecimal()] for name in inner]
    is_named_as_splits = any(_kind_of_word(word) for name in words for word in name)
    is_numbered = all(words) and all(name == words[0] for name in words)
    if is_alike and (is_named_as_splits or is_numbered):
        raise ValueError(
            f"folders {_listed(inner)} of {root} hold folders of the same names, as splits do, but "
            f"are not named like splits: name them train, val and test"
        )


def _check_not_shared(training, other):
    """Rejects a split that a link makes equal to the training images, or to a class of them."""
    other_folders = [other.path, *(other.classes or {}).values()]
    known = [path.resolve() for path in (training.path, *training.classes.values())]
    for path in other_folders:
        if path.resolve() in known:
            raise ValueError(
                f"splits must not share images, but {path} is a link to training images"
            )


def _check_same_classes(training, other):
    if other.classes is None or list(other.classes) == list(training.classes):
        return
    for one, two in ((other, training), (training, other)):
        missing = [name for name in one.classes if name not in two.classes]
        if missing:
            raise ValueError(
                f"class folder {one.classes[missing[0]]} has no counterpart in {two.path}: every "
                f"split must hold the same classes. Received: {_listed(missing)} in one only"
            )


def _check_others(root, folders, named, training, evaluation):
    """Rejects other folders that may be splits or classes, and returns notes about the rest."""
    notes = []
    for name, path in folders.items():
        if name in named:
            continue
        shared = [inner for inner in subfolders(path) if inner in training.classes]
        if shared:
            raise ValueError(
                f"folder {path} holds classes of {training.path}, such as '{shared[0]}', but is "
                f"not named like a split: name it val or test, or move it out of {root}"
            )
        if holds_images(path):
            if evaluation is None:
                raise ValueError(
                    f"folder {path} holds images, beside the split folder {training.path}: "
                    f"expected split folders only, or class folders only"
                )
        if holds_images(path) or any(map(holds_images, subfolders(path).values())):
            notes.append(f"folder {path} is not used: it is not named like a split")
    if holds_images(root):
        notes.append(f"images directly in {root} are not used")
    return notes


def split_kind(name: str) -> str | None:
    """Returns `"train"`, `"validation"` or `"test"` for a usual name of a split folder, else None.

    Case, years and words such as "set" and "images" are ignored, as in `val2017`, `Training_Set`
    and `testData`.
    """
    words = _words(name.lower())
    kinds = {_kind_of_word(words[0]) if len(words) == 1 else None}
    words = _words(name)
    kinds.add(_kind_of_word(words[0]) if len(words) == 1 else None)
    return next(iter(kinds - {None}), None)


def _words(name):
    """Returns the words and numbers of a name in lower case, without filler words and years."""
    words = re.findall("[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", name)
    return [word for word in map(str.lower, words) if not _is_filler(word)]


def _kind_of_word(word):
    """Returns the kind of split of a word, which may end with a filler word, as in `trainset`."""
    stems = (word, *(word.removesuffix(filler) for filler in _FILLERS))
    return next((_SPLIT_OF_WORD[stem] for stem in stems if stem in _SPLIT_OF_WORD), None)


def _is_filler(word):
    return word in _FILLERS or re.fullmatch("(19|20)[0-9]{2}", word)


def _listed(names):
    return first_and_last_names([f"'{name}'" for name in names], _NAMES_SHOWN)
