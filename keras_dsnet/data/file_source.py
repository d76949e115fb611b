"""Images as files on a disk."""

import logging

import numpy as np
import tensorflow as tf

from keras_dsnet.data.decoding import decode_image
from keras_dsnet.data.image_source import ImageSource, shuffled_indices
from keras_dsnet.utils import UserError

_FILES_AT_ONCE = 16
_GRAY = 127.5

_log = logging.getLogger(__name__)


class FileSource(ImageSource):
    """Image files (JPEG, PNG, BMP, GIF), read by index.

    A file that turns out to be unreadable while batches are made does not end the run: training
    sees a gray image in its place, so that no other image changes its batch, evaluation leaves it
    out, and either way the log names the file.

    Args:
        name: the data set's name.
        paths: list of file names.
        labels: list of ints, a label per file.
        class_names: a name per class.
        on_bad_image: `"skip"`, or `"raise"` to end the run at an unreadable file.
    """

    def __init__(self, name, paths, labels, class_names, on_bad_image="skip"):
        super().__init__(name, len(paths), len(class_names), class_names)
        self.paths = list(paths)
        self.labels = list(labels)
        self.class_counts = tuple(np.bincount(labels, minlength=self.num_classes).tolist())
        self._on_bad_image = on_bad_image

    def training_examples(self, seed, epoch_size, start=0):
        lookup = self._lookup()

        def example(number):
            index = shuffled_indices(number, seed, epoch_size, self.num_examples)
            return number, *lookup(index)

        return tf.data.Dataset.range(start, tf.int64.max).map(example)

    def ordered_examples(self):
        return tf.data.Dataset.range(self.num_examples).map(self._lookup())

    def decode(self, stored, window_of=None):
        return decode_image(tf.io.read_file(stored), window_of)

    def map_examples(self, dataset, function, image_shape, replace_unreadable):
        def gray(*example):
            stored, label = example[-2:]
            is_reported = tf.numpy_function(self._report, [stored], tf.bool)
            with tf.control_dependencies([is_reported]):
                return tf.fill(image_shape, _GRAY), label

        def one(*example):
            example = tf.data.Dataset.from_tensors(example)
            instead = example.map(gray)
            if not replace_unreadable:
                instead = instead.filter(lambda *_: False)
            return example.map(function).ignore_errors().concatenate(instead).take(1)

        return dataset.interleave(
            one,
            cycle_length=_FILES_AT_ONCE,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )

    def _lookup(self):
        paths = tf.constant(self.paths)
        labels = tf.constant(self.labels, tf.int32)
        return lambda index: (tf.gather(paths, index), tf.gather(labels, index))

    def _report(self, path):
        path = path.decode()
        try:
            decode_image(tf.io.read_file(path))
        except tf.errors.InvalidArgumentError as error:
            line = unreadable(path)
            if self._on_bad_image == "raise":
                raise UserError(line) from error
            _log.warning("%s; skipped", line)
            return np.True_
        raise RuntimeError(f"image {path} can be read, but preparing it failed")


def unreadable(path):
    """The message for a file that is not an image."""
    return f"image {path} cannot be read: expected a whole JPEG, PNG, BMP or GIF file"
