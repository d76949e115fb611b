"""Data sets, opened by name or by folder."""

import json
import os
import pathlib

from keras_dsnet.data import digits
from keras_dsnet.data.image_folder import load_folder
from keras_dsnet.data.image_source import ImageSource
from keras_dsnet.data.tfds_source import is_tfds_name, load_tfds


def load_source(
    dataset: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    split: str = "train",
    *,
    train_split: str | None = None,
    eval_split: str | None = None,
    classes: int | None = None,
    on_bad_image: str = "skip",
) -> ImageSource:
    """Opens a labelled image data set.

    Nothing is downloaded.

    Args:
        dataset: `"digits"` for the digits of scikit-learn, `"distorted_digits"` for a harder task
            made from them, a TFDS name such as `"cifar10"` or `"imagenet2012"`, or the path of a
            folder of class folders; docs/data.md describes its layout. An existing folder takes
            precedence over a TFDS name, unless TFDS prepared the folder.
        data_dir: Folder in which TFDS prepared the data set. Defaults to the TFDS default folder.
        split: `"train"` or `"eval"`. Defaults to `"train"`.
        train_split: Split to open for `"train"`, in TFDS syntax, such as `"train[:90%]"`. Defaults
            to the split `train`.
        eval_split: Split to open for `"eval"`, in TFDS syntax, such as `"train[90%:]"`. Defaults to
            the test split of a TFDS data set if it has labels, else the validation split. Of a
            folder, defaults to the validation folder, else the test folder, else images that are
            held out of training as the split `test`.
        classes: Int, number of classes of the network. Defaults to that of the data set.
        on_bad_image: `"skip"` to leave out unreadable files of a folder, `"raise"` to raise an
            error. Defaults to `"skip"`.

    Returns:
        `ImageSource`.

    Raises:
        ValueError: There is no such data set or split, or a label is not in `[0, classes)`.
        FileNotFoundError: The folder does not exist, or TFDS has not prepared the data set.

    Example:

    ```python
    from keras_dsnet.data import load_source

    source = load_source("digits", split="eval")
    print(source.description)
    ```
    """
    if split not in ("train", "eval"):
        raise ValueError(f"split must be 'train' or 'eval'. Received: '{split}'")
    if on_bad_image not in ("skip", "raise"):
        raise ValueError(f"on_bad_image must be 'skip' or 'raise'. Received: '{on_bad_image}'")
    spec = train_split if split == "train" else eval_split
    dataset = str(dataset)
    if dataset in digits.NAMES:
        source = digits.open_digits(dataset, split, spec, classes)
        if pathlib.Path(dataset).is_dir():
            source.notes = (*source.notes, f"the folder of this name is '{dataset}/'")
        return source
    folder = existing_folder(dataset)
    if folder is not None:
        return load_folder(folder, split, spec, classes, on_bad_image)
    return load_tfds(dataset, data_dir, split, spec, classes)


def existing_folder(dataset):
    """Returns the folder that `dataset` refers to, or None if it is a TFDS name."""
    if not dataset.strip():
        raise ValueError(f"a data set must have a name or be a folder. Received: '{dataset}'")
    if "://" in dataset:
        raise ValueError(
            f"data set '{dataset}' is an address: expected a folder on this machine, so download "
            f"and unpack it first"
        )
    try:
        folder = pathlib.Path(dataset).expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(f"folder {dataset} does not exist: {error}") from error
    is_path = dataset.startswith((".", "~")) or folder.is_absolute() or "\\" in dataset
    is_path = is_path or dataset.endswith("/")
    if folder.is_dir():
        prepared = _prepared_by_tfds(folder)
        if prepared and is_path:
            raise ValueError(
                f"folder {dataset} was prepared by TFDS: use the data set '{prepared[0]}' with the "
                f"data_dir '{prepared[1]}'"
            )
        return None if prepared else folder
    if folder.exists() and (is_path or folder.suffix):
        raise ValueError(
            f"data set '{dataset}' is a file: expected a folder of class folders. An archive must "
            f"be unpacked first"
        )
    if is_path or ("/" in dataset and not is_tfds_name(dataset)):
        raise FileNotFoundError(f"folder {dataset} does not exist{_missing_part(folder)}")
    return None


def _prepared_by_tfds(folder):
    """Returns `(name, data_dir)` of a data set that TFDS prepared in a folder, or None."""
    for pattern in ("dataset_info.json", "*/dataset_info.json", "*/*/dataset_info.json"):
        # The files are data_dir/name/version/dataset_info.json, or have a configuration between.
        for file in sorted(folder.resolve().glob(pattern)):
            try:
                info = json.loads(file.read_text("utf-8"))
                name, config = info["name"], info.get("configName")
            except (OSError, ValueError, KeyError, TypeError):
                continue
            for place in file.parents:
                if place.name == name:
                    has_config = config and (place / config).is_dir()
                    return f"{name}/{config}" if has_config else name, str(place.parent)
    return None


def _missing_part(folder):
    folder = folder.absolute()
    parent = next(parent for parent in folder.parents if parent.exists())
    missing = folder.relative_to(parent).parts[0]
    reason = f"holds no '{missing}'" if parent.is_dir() else "is a file"
    return f": {parent} {reason}"
