"""Data sets that are streamed from TFRecords."""

import tensorflow as tf

from keras_dsnet.data.decoding import decode_image
from keras_dsnet.data.image_source import ImageSource

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
