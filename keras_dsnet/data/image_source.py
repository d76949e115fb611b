"""Image sources: what the input pipelines need of a labelled data set."""

import numpy as np
import tensorflow as tf

_NAMES_SHOWN = 12


class ImageSource:
    """A data set of labelled images, independent of how it is stored.

    Subclasses say where the images come from: `ArraySource` holds decoded images in memory,
    `FileSource` reads image files by index and `RecordSource` streams TFRecords. Make one with
    `keras_dsnet.data.load_source`.

    Args:
        name: the data set's name, used in messages.
        num_examples: number of images.
        num_classes: number of classes; every label is in `[0, num_classes)`.
        class_names: a name per class, or None.
        image_shape: `(height, width, 3)`, or None where the sizes vary.
        mirrorable: whether a mirrored image still shows its class; False for written characters.
        split: the split that the images are from, such as `"train[:90%]"`, or None.
        notes: lines that a user should read before the work starts, such as skipped files.

    Attributes:
        class_counts: number of images of each class in index order, or None where only a pass over
            the images would tell.

    Raises:
        ValueError: there is no image, or the class names do not fit.
    """

    def __init__(
        self,
        name,
        num_examples,
        num_classes,
        class_names=None,
        image_shape=None,
        mirrorable=True,
        split=None,
        notes=(),
    ):
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
        self.class_counts = None

    @property
    def description(self):
        """One line: data set, split, number of images, classes and, where known, their counts."""
        split = f", split '{self.split}'" if self.split else ""
        classes = "1 class" if self.num_classes == 1 else f"{self.num_classes} classes"
        line = f"{self.name}{split}: {self.num_examples} images, {classes}"
        if self.class_names is None:
            return line
        names = [
            name if self.class_counts is None else f"{name} ({self.class_counts[index]})"
            for index, name in enumerate(self.class_names)
        ]
        if len(names) > _NAMES_SHOWN:
            names = [*names[: _NAMES_SHOWN - 2], "...", names[-1]]
        return f"{line}: {', '.join(names)}"

    def steps_per_epoch(self, batch_size):
        """Number of whole batches in one pass over the images.

        Args:
            batch_size: images per batch.

        Returns:
            `num_examples // batch_size`, at least 1.

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

    def training_examples(self, seed, epoch_size, start=0):
        """An endless stream of shuffled examples, the same for the same seed.

        Args:
            seed: int; the order of epoch `e` is a function of `(seed, e)`.
            epoch_size: number of examples taken from each epoch's order, at most `num_examples`.
            start: number of the first example to deliver, counted from the start of training.

        Returns:
            A `tf.data.Dataset` of `(number, stored image, label)`: the int64 number of the example
            in the stream, what `decode` takes, and an int32 label.
        """
        raise NotImplementedError

    def ordered_examples(self):
        """Every example once, always in the same order.

        Returns:
            A `tf.data.Dataset` of `(stored image, label)`.
        """
        raise NotImplementedError

    def decode(self, stored, window_of=None):
        """Turns a stored image into pixels.

        Args:
            stored: a scalar string (a file name or encoded bytes) or the image itself.
            window_of: a function from the image's shape, int32 `[3]`, to the window to return,
                int32 `[4]`: top, left, height, width. None returns the whole image.

        Returns:
            uint8 `[height, width, 3]`.
        """
        raise NotImplementedError

    def map_examples(self, dataset, function, image_shape, replace_unreadable):
        """Applies `function` to every example of a dataset, in parallel and in order.

        Args:
            dataset: a `tf.data.Dataset` of examples of this source.
            function: from an example to `(image, label)`; it decodes the stored image.
            image_shape: shape of the float32 images that `function` returns.
            replace_unreadable: whether a gray image takes the place of an unreadable one, which is
                left out otherwise. Only loose files can turn out to be unreadable.

        Returns:
            A `tf.data.Dataset` of `(image, label)`.
        """
        del image_shape, replace_unreadable
        return dataset.map(function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def check_labels(name, labels, num_examples, num_classes):
    """Checks the labels of a data set.

    Args:
        name: the data set's name.
        labels: `[examples]` or `[examples, 1]`, whole numbers of any type.
        num_examples: number of images.
        num_classes: number of classes.

    Returns:
        int32 array `[examples]`.

    Raises:
        ValueError: there is not one label per image, or one is not in `[0, num_classes)`.
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
    """Number of examples of each class, a tuple of ints."""
    return tuple(np.bincount(labels, minlength=num_classes).tolist())


def check_classes(name, num_classes, classes):
    """Checks that a network has an output for every label of a data set.

    Args:
        name: the data set's name.
        num_classes: number of classes of the data set.
        classes: number of classes of the network, or None where it follows the data set.

    Raises:
        ValueError: there are more labels than classes.
    """
    if classes is not None and classes < 1:
        raise ValueError(f"classes must be at least 1. Received: classes={classes}")
    if classes is not None and num_classes > classes:
        raise ValueError(
            f"data set '{name}' has labels 0 to {num_classes - 1}, outside classes={classes}: "
            f"use classes={num_classes}"
        )


def shuffled_indices(numbers, seed, epoch_size, num_examples):
    """The images that examples number `numbers` of an endless shuffled stream show.

    Each epoch has its own permutation of all images. A block cipher on the indices computes it at
    any position, so a resumed run does not replay what came before.

    Args:
        numbers: int64 tensor, scalar or `[n]`, positions in the stream; `[n]` within one epoch.
        seed: int.
        epoch_size: positions per epoch.
        num_examples: number of images.

    Returns:
        int64 tensor of the same shape, indices in `[0, num_examples)`.
    """
    epoch = tf.reshape(numbers, [-1])[0] // epoch_size
    return tf.random.experimental.index_shuffle(
        numbers % epoch_size,
        seed=tf.stack([tf.constant(seed, tf.int64), epoch]),
        max_index=tf.constant(num_examples - 1, tf.int64),
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


def describe(lengths):
    """The splits of a data set in words.

    Args:
        lengths: dict, the number of images of each split.

    Returns:
        A string such as `"'train' (1437 images), 'test' (360 images)"`.
    """
    return ", ".join(f"'{name}' ({length} images)" for name, length in lengths.items())


def invalid_split(spec, lengths, dataset):
    """The message for a split that a data set does not have."""
    return (
        f"split '{spec}' of data set '{dataset}' is not valid: it has {describe(lengths)}; "
        f"slices look like 'train[:90%]' or 'train[45000:]'"
    )


def slice_of(spec, lengths, dataset):
    """Resolves a split such as `"train[:90%]"` to a range of examples.

    Args:
        spec: a split in TFDS syntax: a name, optionally with a slice in examples or percent.
        lengths: dict, the number of images of each split that the data set has.
        dataset: the data set's name, for the message.

    Returns:
        `(split name, slice)`.

    Raises:
        ValueError: `spec` is not valid, names no split of the data set or selects nothing.
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
            f"split '{spec}' of data set '{dataset}' holds no image: it has {describe(lengths)}"
        )
    return chosen.splitname, slice(start, stop)
