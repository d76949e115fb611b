"""Data sets by their TensorFlow Datasets (TFDS) name."""

import difflib

import numpy as np
import tensorflow as tf

from keras_dsnet.data.array_source import ArraySource
from keras_dsnet.data.record_source import RecordSource

IN_MEMORY_BYTES = 10**9


def load_tfds(name, data_dir, split, spec):
    """Opens a prepared TFDS data set.

    Images of one size that take less than `IN_MEMORY_BYTES` decoded are read into memory.

    Args:
        name: TFDS name, such as `"cifar10"`.
        data_dir: the folder TFDS prepared it in, or None for the TFDS default folder.
        split: `"train"` or `"eval"`.
        spec: a split in TFDS syntax that overrides `split`, or None.

    Returns:
        An `ImageSource`.

    Raises:
        ValueError: there is no such data set, or it has no image and label, or no such split.
        FileNotFoundError: the data set is not prepared in `data_dir`.
    """
    builder = _prepared_builder(name, data_dir)
    info = builder.info
    features = info.features
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "num_classes"):
        raise ValueError(
            f"data set '{name}' must have the features 'image' and 'label'. "
            f"Received: {sorted(features)}"
        )
    label = features["label"]
    spec = spec or _default_split(builder, name, split)
    try:
        selected = info.splits[spec]
    except Exception as error:
        raise ValueError(
            f"split '{spec}' of data set '{name}' is not valid: it has "
            f"{_describe(info.splits)}; slices look like 'train[:90%]' or 'train[45000:]'"
        ) from error
    if not selected.num_examples:
        raise ValueError(f"split '{spec}' of data set '{name}' holds no image")
    names = label.names if label.names else None
    shape = features["image"].shape
    if None not in shape and selected.num_examples * np.prod(shape) < IN_MEMORY_BYTES:
        images, labels = _read_all(builder, spec, selected.num_examples, shape)
        return ArraySource(name, images, labels, label.num_classes, names)
    return RecordSource(name, builder, spec, label.num_classes, names)


def _prepared_builder(name, data_dir):
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise ValueError(_unknown_dataset(name, tfds.list_builders())) from error
    except (ValueError, ImportError, AssertionError) as error:
        line = str(error).strip().splitlines()[0]
        raise ValueError(f"data set '{name}' cannot be opened by TFDS: {line}") from error
    if not builder.is_prepared():
        raise FileNotFoundError(_how_to_prepare(builder, name, data_dir))
    return builder


def _unknown_dataset(name, known):
    base = name.split("/")[0].split(":")[0]
    close = difflib.get_close_matches(base, [*known, "digits"], n=3)
    hint = f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
    return (
        f"unknown data set '{name}': expected 'digits', a TFDS name or a folder of class "
        f"folders{hint}"
    )


def _how_to_prepare(builder, name, data_dir):
    where = f" --data_dir={data_dir}" if data_dir else ""
    looked = data_dir or "the TFDS default folder"
    command = f"`tfds build {name}{where}`"
    if getattr(builder, "MANUAL_DOWNLOAD_INSTRUCTIONS", None):
        manual = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        command = (
            f"download it by hand ({manual}) into {looked}/downloads/manual, then run {command}"
            if data_dir
            else f"download it by hand ({manual}) into ~/tensorflow_datasets/downloads/manual, "
            f"then run {command}"
        )
    else:
        command = f"run {command}"
    return f"data set '{name}' is not prepared in {looked}: {command}, or give another data_dir"


def _describe(splits):
    return ", ".join(f"'{key}' ({value.num_examples} images)" for key, value in splits.items())


def _default_split(builder, name, split):
    splits = builder.info.splits
    candidates = ("train",) if split == "train" else ("test", "validation")
    for candidate in candidates:
        # The test split of a public challenge has images without labels, written as -1.
        if candidate in splits and (split == "train" or _is_labelled(builder, candidate)):
            return candidate
    raise ValueError(
        f"data set '{name}' has no split for '{split}' (looked for {' and '.join(candidates)}): it "
        f"has {_describe(splits)}; name one by {split}_split"
    )


def _is_labelled(builder, split):
    for label in _labels_only(builder, split).take(1):
        return int(label) >= 0
    return False


def _labels_only(builder, split):
    import tensorflow_datasets as tfds

    decoders = tfds.decode.PartialDecoding({"label": builder.info.features["label"]})
    return builder.as_dataset(split=split, decoders=decoders).map(lambda example: example["label"])


def _read_all(builder, spec, count, shape):
    import tensorflow_datasets as tfds

    read = tfds.ReadConfig(try_autocache=False)
    dataset = builder.as_dataset(split=spec, read_config=read).map(
        lambda example: (example["image"], example["label"]), num_parallel_calls=tf.data.AUTOTUNE
    )
    images = np.empty((count, *shape[:2], 3), np.uint8)
    labels = np.empty(count, np.int32)
    start = 0
    for batch, batch_labels in dataset.batch(1024).as_numpy_iterator():
        images[start : start + len(batch)] = batch  # gray images broadcast to three channels
        labels[start : start + len(batch)] = batch_labels
        start += len(batch)
    return images, labels
