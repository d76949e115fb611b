"""Data sets that are streamed from TFRecords."""

import tensorflow as tf

from keras_dsnet.data.image_source import ImageSource

SHUFFLE_BUFFER_BYTES = 512 * 2**20
_FILES_AT_ONCE = 16
_RECORDS_PER_VISIT = 16


class RecordSource(ImageSource):
    """Encoded images in the TFRecord files of a TFDS data set.

    An epoch visits the files in its own order, `_FILES_AT_ONCE` interleaved, and draws records from
    a window of about `SHUFFLE_BUFFER_BYTES`. Records stay encoded until they are drawn, so skipping
    to a step reads but never decodes.

    Args:
        name: the data set's name.
        builder: a prepared `tfds.core.DatasetBuilder`.
        split: a split in TFDS syntax.
        num_classes: number of classes.
        class_names: a name per class, or None.
    """

    def __init__(self, name, builder, split, num_classes, class_names=None):
        selected = builder.info.splits[split]
        super().__init__(name, selected.num_examples, num_classes, class_names)
        whole = builder.info.splits[split.split("[")[0].split("+")[0]]
        self._mean_bytes = max(1, whole.num_bytes // max(1, whole.num_examples))
        self._features = builder.info.features
        if builder.info.file_format.file_suffix != "tfrecord":
            raise ValueError(
                f"data set '{name}' must be prepared as tfrecord files. "
                f"Received: {builder.info.file_format.file_suffix}"
            )
        files = selected.file_instructions
        self._filenames = [str(file.filename) for file in files]
        self._skips = [file.skip for file in files]
        self._takes = [file.examples_in_shard if file.take == -1 else file.take for file in files]

    def training_examples(self, seed, epoch_size, start=0):
        window = min(self.num_examples, max(1, SHUFFLE_BUFFER_BYTES // self._mean_bytes))
        first_epoch, offset = divmod(start, epoch_size)

        def epoch_records(epoch):
            order_seed = tf.random.experimental.index_shuffle(
                epoch, seed=tf.constant([seed, 1], tf.int64), max_index=tf.int64.max - 1
            )
            files = self._files().shuffle(len(self._filenames), seed=order_seed)
            records = self._read(files).shuffle(window, seed=order_seed).take(epoch_size)
            skipped = tf.where(epoch == first_epoch, tf.constant(offset, tf.int64), 0)
            return records.skip(skipped)

        epochs = tf.data.Dataset.range(first_epoch, tf.int64.max)
        records = epochs.flat_map(epoch_records)
        return records.enumerate(start).map(lambda number, record: (number, *self._parse(record)))

    def ordered_examples(self):
        return self._read(self._files()).map(self._parse)

    def decode(self, stored):
        return tf.io.decode_image(stored, channels=3, expand_animations=False)

    def _files(self):
        return tf.data.Dataset.from_tensor_slices(
            (self._filenames, tf.cast(self._skips, tf.int64), tf.cast(self._takes, tf.int64))
        )

    def _read(self, files):
        def records_of(filename, skip, take):
            return tf.data.TFRecordDataset(filename).skip(skip).take(take)

        return files.interleave(
            records_of,
            cycle_length=_FILES_AT_ONCE,
            block_length=_RECORDS_PER_VISIT,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )

    def _parse(self, record):
        import tensorflow_datasets as tfds

        features = tfds.features.FeaturesDict(
            {"image": self._features["image"], "label": self._features["label"]}
        )
        example = features.deserialize_example(
            record, decoders={"image": tfds.decode.SkipDecoding()}
        )
        return example["image"], tf.cast(example["label"], tf.int32)
