"""Image sources, the form in which the input pipelines read a labelled data set."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_dsnet.data.sharding import Shard
from keras_dsnet.utils.shown_names import first_and_last_names

_NAMES_SHOWN = 12
# 512 images of 224x224 take 308 MB.
_LARGE_BYTES = 2**27


class ImageSource:
    """A data set of labelled images, independent of how it is stored.

    `keras_dsnet.data.load_source` returns one of its subclasses: an `ArraySource` holds decoded
    images in memory, a `FileSource` reads image files and a `RecordSource` streams the TFRecords of
    a TFDS data set. A subclass implements `training_examples`, `ordered_examples` and `decode`.

    Args:
        name: Str, name of the data set, for messages.
        num_examples: Int, number of images.
        num_classes: Int, number of classes. Every label is in `[0, num_classes)`.
        class_names: Sequence of str, one name per class in index order. Defaults to None for
            unknown names.
        image_shape: Tuple `(height, width, 3)` in pixels. Defaults to None for varying sizes.
        mirrorable: Bool, whether a mirrored image still shows its class. False for written
            characters. Defaults to True.
        split: Str, the split of the data set, such as `"train[:90%]"`. Defaults to None.
        notes: Sequence of str, lines that a user should read before training starts, such as a
            count of skipped files. Defaults to none.

    Attributes:
        class_counts: Tuple of ints, number of images of each class in index order. None if that
            would need a pass over the images.
        split_size: Int, number of images of the whole split that `split` may be a slice of, as
            `load_source` finds it, with unreadable ones. None if it is not known.

    Raises:
        ValueError: There is no image, or the number of class names differs from that of classes.
    """

    def __init__(
        self,
        name: str,
        num_examples: int,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        image_shape: tuple[int, ...] | None = None,
        mirrorable: bool = True,
        split: str | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        if num_examples < 1:
            raise ValueError(f"data set '{name}' must hold one image or more. Received: none")
        if class_names is not None and len(class_names) != num_classes:
            raise ValueError(
                f"data set '{name}' must have a name for each of its {num_classes} classes. "
                f"Received: {len(class_names)} names"
            )
        self.name = name
        self.num_examples = num_examples
        self.num_classes = num_classes
        self.class_names = None if class_names is None else tuple(class_names)
        self.image_shape = image_shape
        self.mirrorable = mirrorable
        self.split = split
        self.notes = tuple(notes)
        self.class_counts: tuple[int, ...] | None = None
        self.split_size: int | None = None

    @property
    def description(self) -> str:
        """One line with the name, the split, the number of images, and the classes.

        It includes the number of images of each class if that is known.
        """
        split = f", split '{self.split}'" if self.split else ""
        classes = "1 class" if self.num_classes == 1 else f"{self.num_classes} classes"
        line = f"{self.name}{split}: {self.num_examples} images, {classes}"
        if self.class_names is None:
            return line
        names = [
            name if self.class_counts is None else f"{name} ({self.class_counts[index]})"
            for index, name in enumerate(self.class_names)
        ]
        return f"{line}: {first_and_last_names(names, _NAMES_SHOWN)}"

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns the number of full batches in one pass over the images.

        Args:
            batch_size: Int, images per batch.

        Returns:
            Int of at least 1.

        Raises:
            ValueError: `batch_size` is below 1 or above the number of images.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1. Received: batch_size={batch_size}")
        if batch_size > self.num_examples:
            raise ValueError(
                f"batch_size must be at most {self.num_examples}, the number of images in "
                f"'{self.name}'. Received: batch_size={batch_size}"
            )
        return self.num_examples // batch_size

    def training_examples(self, seed: int, epoch_size: int, start: int = 0) -> tf.data.Dataset:
        """Returns an endless stream of shuffled examples.

        Args:
            seed: Int. The order of epoch `e` is a function of `(seed, e)`.
            epoch_size: Int, number of examples of each epoch, at most `num_examples`.
            start: Int, index of the first example, counted from the start of training. Defaults to
                0.

        Returns:
            `tf.data.Dataset` of `(index, stored_image, label)`: the int64 index of the example in
            the stream, the stored image that `decode` takes, and an int32 label.
        """
        raise NotImplementedError

    def ordered_examples(self) -> tf.data.Dataset:
        """Returns every example once, always in the same order.

        Returns:
            `tf.data.Dataset` of `(stored_image, label)`, as in `training_examples`.
        """
        raise NotImplementedError

    def decode(
        self, stored: tf.Tensor, window_of: Callable[[tf.Tensor], tf.Tensor] | None = None
    ) -> tf.Tensor:
        """Decodes a stored image.

        Args:
            stored: Stored image: a scalar string (a file name or encoded bytes), a pair of a file
                name and an orientation, or the image itself.
            window_of: Function that takes the image's shape, int32 `[3]`, and returns the window to
                decode, int32 `[4]`: top, left, height, width. Defaults to the whole image.

        Returns:
            uint8 tensor `[height, width, 3]`.
        """
        raise NotImplementedError

    def map_training(
        self,
        function: Callable,
        replacement: Callable,
        *,
        seed: int,
        batch_size: int,
        start_step: int = 0,
        shard: Shard | None = None,
        padding: Any = None,
    ) -> tf.data.Dataset:
        """Returns an endless stream of shuffled batches of prepared images.

        Args:
            function: Function from an index, a stored image and a label, as `training_examples`
                returns them, to `(image, target)`: a float32 image, and a label or a dict of
                tensors.
            replacement: Function from the label to `(image, target)`, which replace those of an
                unreadable image. Only the files of a folder can become unreadable.
            seed: Int. The order of epoch `e` is a function of `(seed, e)`.
            batch_size: Int, images per batch, over all workers.
            start_step: Int, index of the first batch. Defaults to 0.
            shard: `Shard` of this worker. Defaults to whole batches.
            padding: Values of the structure of `(image, target)`, which make parts of different
                sizes alike. Defaults to parts of one size.

        Returns:
            `tf.data.Dataset` of `(images, targets)`, such as float32 `[batch, height, width, 3]`
            and int32 `[batch]`.
        """
        del replacement
        shard = shard or Shard(batch_size)
        epoch_size = self.steps_per_epoch(batch_size) * batch_size
        examples = self.training_examples(seed, epoch_size, start_step * batch_size)
        return batched(in_parallel(shard.of_examples(examples), function), shard.rows, padding)

    def map_evaluation(
        self, function: Callable, batch_size: int, every: int = 1, padding: Any = None
    ) -> tf.data.Dataset:
        """Returns batches of all prepared images, once and in order.

        Args:
            function: Function from a stored image and a label to `(image, target)`, as in
                `map_training`.
            batch_size: Int, images per batch. The last batch may be smaller.
            every: Int, 10 for every tenth image. Defaults to 1, all images.
            padding: As in `map_training`.

        Returns:
            `tf.data.Dataset` of `(images, targets)`. Files of a folder that have become unreadable
            are left out.
        """
        examples = in_parallel(self.ordered_examples().shard(every, 0), function)
        return batched(examples, batch_size, padding, drop_remainder=False)


def in_parallel(examples, function):
    """Applies a function to every example of a data set, in parallel, keeping the order."""
    return examples.map(function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def batched(examples, batch_size, padding, drop_remainder=True):
    """Returns batches of examples, with parts of different sizes padded by the values `padding`."""
    if padding is None:
        return examples.batch(batch_size, drop_remainder)
    return examples.padded_batch(batch_size, padding_values=padding, drop_remainder=drop_remainder)


class ArraySource(ImageSource):
    """Decoded images of one size, held in memory.

    Args:
        name: Str, name of the data set, for messages.
        images: uint8 array `[examples, height, width, 3]`, RGB from 0 to 255.
        labels: Array of whole numbers in any dtype, `[examples]` or `[examples, 1]`.
        num_classes: Int, number of classes.
        class_names: Sequence of str, one name per class in index order. Defaults to None for
            unknown names.
        mirrorable: Bool, whether a mirrored image still shows its class. Defaults to True.
        split: Str, the split of the data set. Defaults to None.

    Raises:
        ValueError: Images or labels have another type or shape, there are none, or a label is not
            in `[0, num_classes)`.

    Example:

    ```python
    import numpy as np
    from keras_dsnet.data.image_source import ArraySource

    images = np.zeros((6, 32, 32, 3), "uint8")
    source = ArraySource("zeros", images, labels=[0, 1, 2, 0, 1, 2], num_classes=3)
    print(source.description)
    ```
    """

    def __init__(
        self,
        name: str,
        images: np.ndarray,
        labels: np.ndarray | Sequence[int],
        num_classes: int,
        class_names: Sequence[str] | None = None,
        mirrorable: bool = True,
        split: str | None = None,
    ) -> None:
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
        # Batches are made on the host even if the network runs on another device.
        with tf.device("CPU"):
            self.images = tf.constant(images, tf.uint8)
            self.labels = tf.constant(labels)

    def training_batches(self, seed: int, batch_size: int, start_step: int = 0) -> tf.data.Dataset:
        """Returns an endless stream of shuffled batches, each gathered in one operation.

        Args:
            seed: Int. The order of epoch `e` is a function of `(seed, e)`.
            batch_size: Int, images per batch.
            start_step: Int, index of the first batch. Defaults to 0.

        Returns:
            `tf.data.Dataset` of `(step, images, labels)`: int64 scalar, uint8
            `[batch, height, width, 3]`, int32 `[batch]`.
        """
        epoch_size = self.steps_per_epoch(batch_size) * batch_size

        def batch(step):
            positions = step * batch_size + tf.range(batch_size, dtype=tf.int64)
            indices = shuffled_indices(positions, seed, epoch_size, self.num_examples)
            return step, *self._gather(indices)

        return tf.data.Dataset.range(start_step, tf.int64.max).map(batch)

    def training_examples(self, seed: int, epoch_size: int, start: int = 0) -> tf.data.Dataset:

        def example(position):
            index = shuffled_indices(position, seed, epoch_size, self.num_examples)
            return position, *self._gather(index)

        return tf.data.Dataset.range(start, tf.int64.max).map(example)

    def ordered_examples(self) -> tf.data.Dataset:
        return tf.data.Dataset.range(self.num_examples).map(self._gather)

    def decode(
        self, stored: tf.Tensor, window_of: Callable[[tf.Tensor], tf.Tensor] | None = None
    ) -> tf.Tensor:
        if window_of is None:
            return stored
        return tf.image.crop_to_bounding_box(stored, *tf.unstack(window_of(tf.shape(stored))))

    def _gather(self, indices):
        return tf.gather(self.images, indices), tf.gather(self.labels, indices)


def is_large_batch(batch_size, image_shape):
    """Returns whether a float32 batch takes too much memory to make several in advance.

    Args:
        batch_size: Int, images per batch.
        image_shape: Tuple `(height, width, 3)`.
    """
    return 4 * batch_size * math.prod(image_shape) >= _LARGE_BYTES


def shuffled_indices(positions, seed, epoch_size, num_examples):
    """Returns the indices of the images at some positions of an endless shuffled stream.

    Each epoch has its own permutation of all images. A block cipher on the indices computes it at
    any position, so a resumed run does not repeat the epochs before.

    Args:
        positions: int64 tensor, scalar or `[n]`, positions in the stream, all of one epoch.
        seed: Int.
        epoch_size: Int, positions per epoch.
        num_examples: Int, number of images.

    Returns:
        int64 tensor of the same shape, indices in `[0, num_examples)`.
    """
    epoch = tf.reshape(positions, [-1])[0] // epoch_size
    return tf.random.experimental.index_shuffle(
        positions % epoch_size,
        seed=tf.stack([tf.constant(seed, tf.int64), epoch]),
        max_index=tf.constant(num_examples - 1, tf.int64),
    )


def check_labels(name, labels, num_examples, num_classes):
    """Checks the labels of a data set.

    Args:
        name: Str, name of the data set, for messages.
        labels: Array of whole numbers in any dtype, `[examples]` or `[examples, 1]`.
        num_examples: Int, number of images.
        num_classes: Int, number of classes.

    Returns:
        int32 array `[examples]`.

    Raises:
        ValueError: There is not one label per image, or a label is not in `[0, num_classes)`.
    """
    labels = np.asarray(labels)
    if labels.shape not in ((num_examples,), (num_examples, 1)):
        raise ValueError(
            f"data set '{name}' must have one label for each of its {num_examples} images. "
            f"Received: labels of shape {labels.shape}"
        )
    labels = labels.reshape(-1)
    if not np.issubdtype(labels.dtype, np.number) or np.iscomplexobj(labels):
        raise ValueError(
            f"labels of data set '{name}' must be whole numbers. Received: {labels.dtype}"
        )
    is_label = (labels >= 0) & (labels < num_classes) & (labels == np.floor(labels))
    if not is_label.all():
        raise ValueError(
            f"labels of data set '{name}' must be in 0..{num_classes - 1}. "
            f"Received: {labels[~is_label][0]}"
        )
    return labels.astype(np.int32)


def count_labels(labels, num_classes):
    """Returns the number of examples of each class as a tuple of ints."""
    return tuple(np.bincount(labels, minlength=num_classes).tolist())


def check_classes(name, num_classes, classes):
    """Checks that a network has an output for every label of a data set.

    Args:
        name: Str, name of the data set, for messages.
        num_classes: Int, number of classes of the data set.
        classes: Int, number of classes of the network. None if it has those of the data set.

    Raises:
        ValueError: The data set has more classes than the network.
    """
    if classes is not None and classes < 1:
        raise ValueError(f"classes must be at least 1. Received: classes={classes}")
    if classes is not None and num_classes > classes:
        raise ValueError(
            f"data set '{name}' has labels 0 to {num_classes - 1}, outside classes={classes}: "
            f"use classes={num_classes}"
        )


def resolve_split(spec, lengths, dataset):
    """Resolves a split such as `"train[:90%]"` to a range of examples.

    Args:
        spec: Str, a split in TFDS syntax: a name, optionally with a slice in examples or percent.
        lengths: Dict that maps the names of the data set's splits to their numbers of images.
        dataset: Str, name of the data set, for messages.

    Returns:
        `(name, chosen)`: the name of the split and a Python slice.

    Raises:
        ValueError: `spec` is not valid, names no split of the data set or selects no image.
    """
    import tensorflow_datasets as tfds

    infos = {
        name: tfds.core.SplitInfo(
            name=name, shard_lengths=[length], num_bytes=0, filename_template=None
        )
        for name, length in lengths.items()
    }
    try:
        (chosen,) = tfds.core.ReadInstruction.from_spec(spec).to_absolute(infos)
    except (ValueError, AssertionError, KeyError) as error:
        raise ValueError(invalid_split(spec, lengths, dataset)) from error
    start = 0 if chosen.from_ is None else chosen.from_
    stop = lengths[chosen.splitname] if chosen.to is None else chosen.to
    if stop <= start:
        raise ValueError(
            f"split '{spec}' of data set '{dataset}' holds no image: it has "
            f"{describe_splits(lengths)}"
        )
    return chosen.splitname, slice(start, stop)


def invalid_split(spec, lengths, dataset):
    """Returns the message for a split that a data set does not have."""
    return (
        f"split '{spec}' of data set '{dataset}' is not valid: it has {describe_splits(lengths)}; "
        f"slices look like 'train[:90%]' or 'train[45000:]'"
    )


def describe_splits(lengths):
    """Returns the splits of a data set as text.

    Args:
        lengths: Dict that maps the names of the splits to their numbers of images.

    Returns:
        Str such as `"'train' (1437 images), 'test' (360 images)"`.
    """
    return ", ".join(f"'{name}' ({length} images)" for name, length in lengths.items())
