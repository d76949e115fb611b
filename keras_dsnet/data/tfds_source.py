"""Data sets by their TensorFlow Datasets (TFDS) name."""

import contextlib
import difflib
import pathlib
import re

import absl.logging
import numpy as np
import tensorflow as tf

from keras_dsnet.data.digits import NAMES as DIGITS
from keras_dsnet.data.encoded_image import decode_image
from keras_dsnet.data.image_source import (
    ArraySource,
    ImageSource,
    check_classes,
    describe,
    invalid_split,
)

IN_MEMORY_BYTES = 10**9
# Below this likeness, a short word is close to some name that has nothing to do with it.
_CLOSE_NAME = 0.75
_CHARACTERS = ("mnist", "emnist", "kmnist", "svhn", "omniglot", "binarized_mnist", "cmaterdb")


def load_tfds(name, data_dir, split, spec, classes):
    """Opens a prepared TFDS data set.

    Images of one size that take less than `IN_MEMORY_BYTES` decoded are read into memory; others
    are streamed. `"eval"` is the split `test` if that has labels, else `validation`.

    Args:
        name: TFDS name, such as `"cifar10"`.
        data_dir: the folder TFDS prepared it in, or None for the TFDS default folder.
        split: `"train"` or `"eval"`.
        spec: a split in TFDS syntax that overrides `split`, or None.
        classes: number of classes of the network, or None.

    Returns:
        An `ArraySource` or a `RecordSource`.

    Raises:
        ValueError: there is no such data set, or it has no image and label, more labels than
            `classes`, or no such split.
        FileNotFoundError: the data set is not prepared in `data_dir`.
    """
    builder = _prepared_builder(name, data_dir)
    image, label = _image_and_label(name, builder.info.features)
    check_classes(name, label.num_classes, classes)
    lengths = {key: value.num_examples for key, value in builder.info.splits.items()}
    spec = spec or _default_split(builder, name, split, lengths)
    try:
        num_examples = builder.info.splits[spec].num_examples
    except (ValueError, AssertionError, KeyError) as error:
        raise ValueError(invalid_split(spec, lengths, name)) from error
    if not num_examples:
        raise ValueError(f"split '{spec}' of '{name}' holds no image: it has {describe(lengths)}")
    if not _is_labelled(builder, spec):
        raise ValueError(f"the images of split '{spec}' of '{name}' have no labels")
    mirrorable = not name.startswith(_CHARACTERS)
    if None in image.shape or num_examples * 3 * np.prod(image.shape[:2]) >= IN_MEMORY_BYTES:
        return RecordSource(name, builder, spec, mirrorable)
    images, labels = _read_all(builder, spec, num_examples, image.shape)
    return ArraySource(name, images, labels, label.num_classes, label.names, mirrorable, spec)


def is_tfds_name(name):
    """Whether TFDS has a data set of this name, with or without a configuration and a version."""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    return re.split("[/:]", name)[0] in known


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


def _prepared_builder(name, data_dir):
    import tensorflow_datasets as tfds

    try:
        with _quiet():
            builder = tfds.builder(name, data_dir=data_dir)
            is_prepared = builder.is_prepared()
    except tfds.core.registered.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        raise ValueError(_unknown_dataset(name, known)) from error
    except (ValueError, AssertionError, ImportError, RuntimeError, tf.errors.OpError) as error:
        # TFDS puts the arguments before the reason, and a list of all alternatives after it.
        reason = str(error).strip().splitlines()[0].split('}": ')[-1].split(" Here are")[0]
        raise ValueError(f"data set '{name}' cannot be opened by TFDS: {reason}") from error
    if not is_prepared:
        raise FileNotFoundError(_how_to_prepare(builder, name, data_dir))
    return builder


@contextlib.contextmanager
def _quiet():
    """Keeps TFDS from logging what the error says better."""
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        yield
    finally:
        absl.logging.set_verbosity(verbosity)


def _unknown_dataset(name, known):
    close = difflib.get_close_matches(
        re.split("[/:]", name)[0], [*known, *DIGITS], n=3, cutoff=_CLOSE_NAME
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
    looked = data_dir or "the TFDS default folder"
    return f"data set '{name}' is not prepared in {looked}: {how}, or give another data_dir"


def _default_split(builder, name, split, lengths):
    candidates = ("train",) if split == "train" else ("test", "validation")
    for candidate in candidates:
        # The test split of a challenge such as ImageNet has images without labels, written as -1.
        if candidate in lengths and _is_labelled(builder, candidate):
            return candidate
    raise ValueError(
        f"data set '{name}' has no split {' or '.join(candidates)} with labels: it has "
        f"{describe(lengths)}; name one by {split}_split"
    )


def _is_labelled(builder, split):
    import tensorflow_datasets as tfds

    encoded = {"image": tfds.decode.SkipDecoding()}
    # A cache of which one example is read makes TensorFlow warn.
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


SHUFFLE_BUFFER_BYTES = 512 * 2**20
_FILES_AT_ONCE = 16
_RECORDS_PER_VISIT = 16


class RecordSource(ImageSource):
    """Encoded images in the TFRecord files of a TFDS data set.

    An epoch visits the files in its own order, `_FILES_AT_ONCE` interleaved, and draws records from
    a window of about `SHUFFLE_BUFFER_BYTES`. Records stay encoded until they are drawn, so going
    to a step in the middle of an epoch reads but never decodes.

    Args:
        name: the data set's name.
        builder: a prepared `tfds.core.DatasetBuilder` with the features `image` and `label`.
        split: a split in TFDS syntax.
        mirrorable: whether a mirrored image still shows its class.

    Raises:
        ValueError: the data set is not stored as TFRecords.

    A label outside the classes ends the stream with an error, since only a pass over all records
    could find it at the start.
    """

    def __init__(self, name, builder, split, mirrorable=True):
        import tensorflow_datasets as tfds

        info = builder.info
        if info.file_format != tfds.core.FileFormat.TFRECORD:
            raise ValueError(
                f"data set '{name}' must be prepared as tfrecord files. "
                f"Received: {info.file_format.value}"
            )
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
        files = selected.file_instructions
        self._filenames = [str(file.filename) for file in files]
        self._skips = [file.skip for file in files]
        self._takes = [file.take for file in files]
        sizes = list(info.splits.values())
        num_bytes = sum(size.num_bytes for size in sizes)
        self._mean_bytes = max(1, num_bytes // sum(size.num_examples for size in sizes))
        self._features = tfds.features.FeaturesDict(
            {"image": info.features["image"], "label": label}
        )
        self._decoders = {"image": tfds.decode.SkipDecoding()}

    def training_examples(self, seed, epoch_size, start=0):
        window = min(self.num_examples, max(1, SHUFFLE_BUFFER_BYTES // self._mean_bytes))
        first_epoch, offset = divmod(start, epoch_size)
        num_files = len(self._filenames)

        def epoch_records(epoch):
            # The seed of this function's graph, in place of the global one. A tensor as the other
            # seed needs one that is not 0.
            tf.compat.v1.set_random_seed(1)
            key = tf.stack([tf.constant(seed, tf.int64), epoch])
            order = tf.random.experimental.index_shuffle(
                tf.range(num_files, dtype=tf.int64), key, tf.constant(num_files - 1, tf.int64)
            )
            window_seed = tf.random.stateless_uniform(
                [], key, minval=None, maxval=None, dtype=tf.int64
            )
            records = self._read(order).shuffle(window, seed=window_seed).take(epoch_size)
            return records.skip(tf.where(epoch == first_epoch, tf.constant(offset, tf.int64), 0))

        records = tf.data.Dataset.range(first_epoch, tf.int64.max).flat_map(epoch_records)
        return records.enumerate(start).map(lambda number, record: (number, *self._parse(record)))

    def ordered_examples(self):
        return self._read(tf.range(len(self._filenames), dtype=tf.int64)).map(self._parse)

    def decode(self, stored, window_of=None):
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
