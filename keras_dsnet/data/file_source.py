"""Images as files on a disk."""

import tensorflow as tf

from keras_dsnet.data.image_source import ImageSource, shuffled_indices


class FileSource(ImageSource):
    """Image files (JPEG, PNG, BMP, GIF), read by index.

    Args:
        name: the data set's name.
        paths: list of file names.
        labels: list of ints, a label per file.
        class_names: a name per class.
    """

    def __init__(self, name, paths, labels, class_names):
        super().__init__(name, len(paths), len(class_names), tuple(class_names))
        self.paths = list(paths)
        self.labels = list(labels)

    def _lookup(self):
        paths = tf.constant(self.paths)
        labels = tf.constant(self.labels, tf.int32)
        return lambda index: (tf.gather(paths, index), tf.gather(labels, index))

    def training_examples(self, seed, epoch_size, start=0):
        lookup = self._lookup()

        def example(number):
            index = shuffled_indices(number, seed, epoch_size, self.num_examples)
            return number, *lookup(index)

        return tf.data.Dataset.range(start, tf.int64.max).map(example)

    def ordered_examples(self):
        return tf.data.Dataset.range(self.num_examples).map(self._lookup())

    def decode(self, stored):
        return tf.io.decode_image(tf.io.read_file(stored), channels=3, expand_animations=False)
