"""Images that fit in memory, decoded."""

import numpy as np
import tensorflow as tf

from keras_dsnet.data.image_source import (
    ImageSource,
    check_labels,
    count_labels,
    shuffled_indices,
)


class ArraySource(ImageSource):
    """Decoded images of one size, held in memory.

    Args:
        name: the data set's name.
        images: uint8 array `[examples, height, width, 3]`, 0..255.
        labels: whole numbers, `[examples]` or `[examples, 1]`.
        num_classes: number of classes.
        class_names: a name per class, or None.
        mirrorable: whether a mirrored image still shows its class.
        split: the split that the images are from, or None.

    Raises:
        ValueError: images or labels have another type or shape, there is none, or a label is not in
            `[0, num_classes)`.
    """

    def __init__(
        self, name, images, labels, num_classes, class_names=None, mirrorable=True, split=None
    ):
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise ValueError(
                f"images of data set '{name}' must be uint8 [examples, height, width, 3]. "
                f"Received: {images.dtype} {list(images.shape)}"
            )
        shape = images.shape[1:]
        super().__init__(name, len(images), num_classes, class_names, shape, mirrorable, split)
        labels = check_labels(name, labels, len(images), num_classes)
        self.class_counts = count_labels(labels, num_classes)
        # On the host: batches are made there, whatever the network runs on.
        with tf.device("CPU"):
            self.images = tf.constant(images, tf.uint8)
            self.labels = tf.constant(labels)

    def training_batches(self, seed, batch_size, start_step=0):
        """An endless stream of shuffled batches, looked up at once instead of image by image.

        Args:
            seed: int; the order of epoch `e` is a function of `(seed, e)`.
            batch_size: images per batch.
            start_step: number of the first batch to deliver.

        Returns:
            A `tf.data.Dataset` of `(step, images, labels)`: int64 scalar, uint8
            `[batch, height, width, 3]`, int32 `[batch]`.
        """
        epoch_size = self.steps_per_epoch(batch_size) * batch_size

        def batch(step):
            numbers = step * batch_size + tf.range(batch_size, dtype=tf.int64)
            return step, *self._lookup(
                shuffled_indices(numbers, seed, epoch_size, self.num_examples)
            )

        return tf.data.Dataset.range(start_step, tf.int64.max).map(batch)

    def training_examples(self, seed, epoch_size, start=0):

        def example(number):
            index = shuffled_indices(number, seed, epoch_size, self.num_examples)
            return number, *self._lookup(index)

        return tf.data.Dataset.range(start, tf.int64.max).map(example)

    def ordered_examples(self):
        return tf.data.Dataset.range(self.num_examples).map(self._lookup)

    def decode(self, stored, window_of=None):
        if window_of is None:
            return stored
        return tf.image.crop_to_bounding_box(stored, *tf.unstack(window_of(tf.shape(stored))))

    def _lookup(self, indices):
        return tf.gather(self.images, indices), tf.gather(self.labels, indices)
