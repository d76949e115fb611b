"""Data sets of TensorFlow Datasets (TFDS), opened by name."""

import contextlib
import difflib
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import absl.logging
import numpy as np
import tensorflow as tf

from keras_dsnet.data.digits import NAMES as DIGITS
from keras_dsnet.data.encoded_image import decode_image
from keras_dsnet.data.image_source import (
    ArraySource,
    ImageSource,
    check_classes,
    describe_splits,
    invalid_split,
)

# Decoded images that take less are held in memory.
IN_MEMORY_BYTES = 10**9
SHUFFLE_BUFFER_BYTES = 512 * 2**20
_FILES_AT_ONCE = 16
_RECORDS_PER_VISIT = 16
# Similarity of a suggested name. With less, a short word resembles unrelated names.
_MIN_SIMILARITY = 0.75
# Data sets of written characters, which must not be mirrored.
_CHARACTERS = ("mnist", "emnist", "kmnist", "svhn", "omniglot", "binarized_mnist", "cmaterdb")


def load_tfds(
    name: str,
    data_dir: str | os.PathLike | None,
    split: str,
    spec: str | None,
    classes: int | None,
) -> ImageSource:
    """Opens a prepared TFDS data set.

    Images of one size that take less than `IN_MEMORY_BYTES` when decoded are read into memory.
    Other images are streamed. `"eval"` is the split `test` if that has labels, else `validation`.

    Args:
        name: Str, TFDS name such as `"cifar10"`.
        data_dir: Folder in which TFDS prepared the data set. None for the TFDS default folder.
        split: `"train"` or `"eval"`.
        spec: Str, a split in TFDS syntax that overrides `split`, or None.
        classes: Int, number of classes of the network, or None.

    Returns:
        `ArraySource` or `RecordSource`.

    Raises:
        ValueError: There is no such data set or split, the data set has no image or no label, or it
            has more classes than `classes`.
        FileNotFoundError: The data set is not prepared in `data_dir`.
    """
    builder = prepared_builder(name, data_dir)
    image, label = _image_and_label(name, builder.info.features)
    check_classes(name, label.num_classes, classes)
    lengths = {key: value.num_examples for key, value in builder.info.splits.items()}
    spec = spec or _default_split(builder, name, split, lengths)
    try:
        num_examples = builder.info.splits[spec].num_examples
    except (ValueError, AssertionError, KeyError) as error:
        raise ValueError(invalid_split(spec, lengths, name)) from error
    if not num_examples:
        raise ValueError(
            f"split '{spec}' of '{name}' holds no image: it has {describe_splits(lengths)}"
        )
    if not _is_labelled(builder, spec):
        raise ValueError(f"the images of split '{spec}' of '{name}' have no labels")
    mirrorable = not name.startswith(_CHARACTERS)
    source: ImageSource
    if None in image.shape or num_examples * 3 * np.prod(image.shape[:2]) >= IN_MEMORY_BYTES:
        source = RecordSource(name, builder, spec, mirrorable)
    else:
        images, labels = _read_all(builder, spec, num_examples, image.shape)
        classes, names = label.num_classes, label.names
        source = ArraySource(name, images, labels, classes, names, mirrorable, spec)
    source.split_size = lengths.get(spec.split("[")[0])
    return source


def prepared_builder(name: str, data_dir: str | os.PathLike | None) -> Any:
    """Returns the `tfds.core.DatasetBuilder` of a data set that TFDS has prepared.

    Args:
        name: Str, TFDS name.
        data_dir: Folder in which TFDS prepared the data set. None for the TFDS default folder.

    Raises:
        ValueError: There is no such data set.
        FileNotFoundError: The data set is not prepared in `data_dir`.
    """
    import tensorflow_datasets as tfds

    try:
        with _quiet():
            builder = tfds.builder(name, data_dir=data_dir)
            is_prepared = builder.is_prepared()
    except tfds.core.registered.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        raise ValueError(_unknown_dataset(name, known)) from error
    except (ValueError, AssertionError, ImportError, RuntimeError, tf.errors.OpError) as error:
        # The message of TFDS begins with the arguments and ends with a list of all alternatives.
        reason = str(error).strip().splitlines()[0].split('}": ')[-1].split(" Here are")[0]
        raise ValueError(f"data set '{name}' cannot be opened by TFDS: {reason}") from error
    if not is_prepared:
        raise FileNotFoundError(_how_to_prepare(builder, name, data_dir))
    return builder


@contextlib.contextmanager
def _quiet():
    """Turns off the log lines of TFDS, which repeat the error."""
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        yield
    finally:
        absl.logging.set_verbosity(verbosity)


def _unknown_dataset(name, known):
    close = difflib.get_close_matches(
        re.split("[/:]", name)[0], [*known, *DIGITS], n=3, cutoff=_MIN_SIMILARITY
    )
    hint = f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
    return (
        f"unknown data set '{name}': there is no folder '{name}' in {pathlib.Path.cwd()}, and it "
        f"is neither {' nor '.join(map(repr, DIGITS))} nor a TFDS name{hint}"
    )


def _how_to_prepare(builder, name, data_dir):
    where = f" --data_dir={data_dir}" if data_dir else ""
    how = f"run `tfds build {name}{where}`"
    manual = getattr(builder, "MANUAL_DOWNLOAD_INSTRUCTIONS", None)
    if manual:
        folder = f"{data_dir or '~/tensorflow_datasets'}/downloads/manual"
        how = f"put its files in {folder} by hand, then {how} ({' '.join(manual.split())})"
    place = data_dir or "the TFDS default folder"
    return f"data set '{name}' is not prepared in {place}: {how}, or pass another data_dir"


def _image_and_label(name, features):
    import tensorflow_datasets as tfds

    by_name = dict(features.items())
    image, label = by_name.get("image"), by_name.get("label")
    if (
        isinstance(image, tfds.features.Image)
        and image.np_dtype == np.uint8
        and image.shape[-1] in (1, 3)
        and isinstance(label, tfds.features.ClassLabel)
        and label.num_classes
    ):
        return image, label
    raise ValueError(
        f"data set '{name}' must have an 'image' (8 bits, gray or RGB) and a class 'label' among "
        f"its features. Received: {', '.join(sorted(by_name))}"
    )


def _default_split(builder, name, split, lengths):
    candidates = ("train",) if split == "train" else ("test", "validation")
    for candidate in candidates:
        # The test split of a challenge such as ImageNet has no labels, which TFDS stores as -1.
        if candidate in lengths and _is_labelled(builder, candidate):
            return candidate
    raise ValueError(
        f"data set '{name}' has no split {' or '.join(candidates)} with labels: it has "
        f"{describe_splits(lengths)}; pass {split}_split to choose another"
    )


def _is_labelled(builder, split):
    import tensorflow_datasets as tfds

    encoded = {"image": tfds.decode.SkipDecoding()}
    # TensorFlow warns if only one example of a cached data set is read.
    uncached = tfds.ReadConfig(try_autocache=False)
    first = builder.as_dataset(split=split, decoders=encoded, read_config=uncached).take(1)
    return all(int(example["label"]) >= 0 for example in first)


def _read_all(builder, spec, count, shape):
    import tensorflow_datasets as tfds

    dataset = builder.as_dataset(split=spec, read_config=tfds.ReadConfig(try_autocache=False))
    images = np.empty((count, *shape[:2], 3), np.uint8)
    labels = np.empty(count, np.int32)
    start = 0
    pairs = dataset.map(lambda example: (example["image"], example["label"]))
    for batch, batch_labels in pairs.batch(1024).prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
        stop = start + len(batch)
        images[start:stop] = batch  # gray images broadcast to three channels
        labels[start:stop] = batch_labels
        start = stop
    return images, labels


def is_tfds_name(name: str) -> bool:
    """Returns whether TFDS has a data set of this name.

    The name may include a configuration and a version, as in `"mnist_corrupted/fog:1.0.0"`.
    """
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    return re.split("[/:]", name)[0] in known


class RecordSource(ImageSource):
    """Encoded images in the TFRecord files of a TFDS data set, which are streamed.

    Each epoch reads the files in its own order, `_FILES_AT_ONCE` interleaved, and shuffles records
    in a buffer of about `SHUFFLE_BUFFER_BYTES`. Images are decoded after shuffling, so resuming in
    the middle of an epoch reads the skipped records but does not decode them.

    A label that is not a class ends the stream with an error. Finding it earlier would need a pass
    over all records.

    Args:
        name: Str, name of the data set, for messages.
        builder: Prepared `tfds.core.DatasetBuilder` with the features `image` and `label`.
        split: Str, a split in TFDS syntax.
        mirrorable: Bool, whether a mirrored image still shows its class. Defaults to True.

    Raises:
        ValueError: The data set is not stored as TFRecords.
    """

    def __init__(self, name: str, builder: Any, split: str, mirrorable: bool = True) -> None:
        import tensorflow_datasets as tfds

        info = builder.info
        selected = info.splits[split]
        label = info.features["label"]
        height, width, _ = info.features["image"].shape
        super().__init__(
            name,
            selected.num_examples,
            label.num_classes,
            label.names,
            None if height is None or width is None else (height, width, 3),
            mirrorable,
            split,
        )
        self._open_files([(builder, split)])
        self._features = tfds.features.FeaturesDict(
            {"image": info.features["image"], "label": label}
        )
        self._decoders = {"image": tfds.decode.SkipDecoding()}

    def _open_files(self, parts):
        """Notes the files of `(builder, split)` pairs, whose records are read as one data set."""
        import tensorflow_datasets as tfds

        for builder, _ in parts:
            if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
                raise ValueError(
                    f"data set '{self.name}' must be prepared as tfrecord files. "
                    f"Received: {builder.info.file_format.value}"
                )
        files = [file for builder, split in parts for file in _instructions(builder, split)]
        self._filenames = [str(file.filename) for file in files]
        self._skips = [file.skip for file in files]
        self._takes = [file.take for file in files]
        splits = [split for builder, _ in parts for split in builder.info.splits.values()]
        num_bytes = sum(split.num_bytes for split in splits)
        self._mean_bytes = max(1, num_bytes // sum(split.num_examples for split in splits))

    def training_examples(self, seed: int, epoch_size: int, start: int = 0) -> tf.data.Dataset:
        buffer_size = min(self.num_examples, max(1, SHUFFLE_BUFFER_BYTES // self._mean_bytes))
        first_epoch, offset = divmod(start, epoch_size)
        num_files = len(self._filenames)

        def epoch_records(epoch):
            # This seed of the function's graph replaces the global seed. It must not be 0, because
            # the seed of the shuffle is a tensor.
            tf.compat.v1.set_random_seed(1)
            key = tf.stack([tf.constant(seed, tf.int64), epoch])
            order = tf.random.experimental.index_shuffle(
                tf.range(num_files, dtype=tf.int64), key, tf.constant(num_files - 1, tf.int64)
            )
            shuffle_seed = tf.random.stateless_uniform(
                [], key, minval=None, maxval=None, dtype=tf.int64
            )
            records = self._read(order).shuffle(buffer_size, seed=shuffle_seed).take(epoch_size)
            return records.skip(tf.where(epoch == first_epoch, tf.constant(offset, tf.int64), 0))

        records = tf.data.Dataset.range(first_epoch, tf.int64.max).flat_map(epoch_records)
        return records.enumerate(start).map(lambda index, record: (index, *self._parse(record)))

    def ordered_examples(self) -> tf.data.Dataset:
        return self._read(tf.range(len(self._filenames), dtype=tf.int64)).map(self._parse)

    def decode(
        self, stored: tf.Tensor, window_of: Callable[[tf.Tensor], tf.Tensor] | None = None
    ) -> tf.Tensor:
        return decode_image(stored, window_of)

    def _read(self, order):
        filenames = tf.gather(self._filenames, order)
        skips = tf.gather(tf.constant(self._skips, tf.int64), order)
        takes = tf.gather(tf.constant(self._takes, tf.int64), order)
        return tf.data.Dataset.from_tensor_slices((filenames, skips, takes)).interleave(
            lambda name, skip, take: tf.data.TFRecordDataset(name).skip(skip).take(take),
            cycle_length=_FILES_AT_ONCE,
            block_length=_RECORDS_PER_VISIT,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )

    def _parse(self, record):
        example = self._features.deserialize_example(record, decoders=self._decoders)
        label = tf.cast(example["label"], tf.int32)
        message = f"labels of '{self.name}' must be in 0..{self.num_classes - 1}. Received:"
        is_label = (label >= 0) & (label < self.num_classes)
        with tf.control_dependencies([tf.debugging.Assert(is_label, [message, label])]):
            return example["image"], tf.identity(label)


def _instructions(builder, split):
    return builder.info.splits[split].file_instructions
