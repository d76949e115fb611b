"""One door to every data set."""

import pathlib

from keras_dsnet.data.array_source import ArraySource
from keras_dsnet.data.digits import load_digits
from keras_dsnet.data.image_folder import load_folder
from keras_dsnet.data.image_source import check_classes
from keras_dsnet.data.splits import slice_of
from keras_dsnet.data.tfds_source import load_tfds


def load_source(
    dataset,
    data_dir=None,
    split="train",
    *,
    train_split=None,
    eval_split=None,
    classes=None,
    on_bad_image="skip",
):
    """Opens a labelled image data set.

    Args:
        dataset: `"digits"` (scikit-learn's), a TFDS name such as `"cifar10"` or `"imagenet2012"`,
            or a folder of class folders.
        data_dir: where TFDS prepared the data set; None is the TFDS default folder. Nothing is
            downloaded.
        split: `"train"` or `"eval"`.
        train_split: what `"train"` stands for, in TFDS syntax, such as `"train[:90%]"`. None is
            the split `train`.
        eval_split: what `"eval"` stands for, in TFDS syntax, such as `"train[90%:]"`. None is the
            test split if it has labels, else the validation split; of a folder the first of
            `val/`, `validation/` and `test/`, else held-out images, which are called `test`.
        classes: number of classes of the network, or None for those of the data set.
        on_bad_image: what happens to unreadable files in a folder: `"skip"` or `"raise"`.

    Returns:
        An `ImageSource`.

    Raises:
        ValueError: no such data set or split, or its labels are not in `[0, classes)`.
        FileNotFoundError: the folder does not exist, or TFDS has not prepared the data set.
    """
    if split not in ("train", "eval"):
        raise ValueError(f"split must be 'train' or 'eval'. Received: '{split}'")
    if on_bad_image not in ("skip", "raise"):
        raise ValueError(f"on_bad_image must be 'skip' or 'raise'. Received: '{on_bad_image}'")
    spec = train_split if split == "train" else eval_split
    dataset = str(dataset)
    folder = pathlib.Path(dataset).expanduser()
    if dataset == "digits":
        return _digits(split, spec, classes)
    if folder.is_dir():
        return load_folder(folder, split, spec, classes, on_bad_image)
    if folder.exists():
        raise ValueError(f"data set '{dataset}' is a file: expected a folder of class folders")
    if dataset.startswith((".", "/", "~")):
        raise FileNotFoundError(f"folder {dataset} does not exist")
    return load_tfds(dataset, data_dir, split, spec, classes)


def _digits(split, spec, classes):
    names = tuple("0123456789")
    check_classes("digits", len(names), classes)
    splits = load_digits()
    key = "train" if split == "train" else "test"
    chosen = slice(None)
    if spec:
        lengths = {name: len(labels) for name, (_, labels) in splits.items()}
        key, chosen = slice_of(spec, lengths, "digits")
    images, labels = splits[key]
    return ArraySource(
        "digits", images[chosen], labels[chosen], len(names), names, False, spec or key
    )
