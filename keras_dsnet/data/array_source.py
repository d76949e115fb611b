"""Images that fit in memory, decoded."""

import numpy as np
import tensorflow as tf

from keras_dsnet.data.image_source import ImageSource, shuffled_indices


class ArraySource(ImageSource):
    """Decoded images of one size, held in memory.

    Args:
        name: the data set's name.
        images: uint8 array `[examples, height, width, 3]`.
        labels: int array `[examples]`.
        num_classes: number of classes.
        class_names: a name per class, or None.
    """

    def __init__(self, name, images, labels, num_classes, class_names=None):
        super().__init__(name, len(images), num_classes, class_names, tuple(images.shape[1:]))
        self.images = np.asarray(images, np.uint8)
        self.labels = np.asarray(labels, np.int32)

    def training_batches(self, seed, batch_size, start_step=0):
        """An endless stream of shuffled batches.

        Args:
            seed: int; the order of epoch `e` is a function of `(seed, e)`.
            batch_size: images per batch.
            start_step: number of the first batch to deliver.

        Returns:
            A `tf.data.Dataset` of `(step, indices)`: an int64 scalar and int64 `[batch]`, to be
            looked up by `gather`.
        """
        steps = self.steps_per_epoch(batch_size)

        def indices_of(step):
            numbers = step * batch_size + tf.range(batch_size, dtype=tf.int64)
            return step, shuffled_indices(numbers, seed, steps * batch_size, self.num_examples)

        return tf.data.Dataset.range(start_step, tf.int64.max).map(indices_of)

    def lookup(self):
        """A function from indices to images and labels, over one copy of the tensors.

        Returns:
            A function of an int64 tensor (scalar or `[batch]`) that returns `(images, labels)`.
        """
        with tf.device("CPU"):
            images = tf.constant(self.images)
            labels = tf.constant(self.labels)
        return lambda indices: (tf.gather(images, indices), tf.gather(labels, indices))

    def training_examples(self, seed, epoch_size, start=0):
        lookup = self.lookup()

        def example(number):
            index = shuffled_indices(number, seed, epoch_size, self.num_examples)
            return number, *lookup(index)

        return tf.data.Dataset.range(start, tf.int64.max).map(example)

    def ordered_examples(self):
        return tf.data.Dataset.range(self.num_examples).map(self.lookup())

    def decode(self, stored):
        return stored
