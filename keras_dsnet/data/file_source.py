"""Image files on a disk, as an image source."""

import functools
import logging
import math
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from keras_dsnet.data.class_folders import readable_name, some_names
from keras_dsnet.data.encoded_image import decode_image
from keras_dsnet.data.image_source import (
    ImageSource,
    check_labels,
    count_labels,
    shuffled_indices,
)
from keras_dsnet.data.sharding import Shard
from keras_dsnet.utils import UserError

_FILES_AT_ONCE = 16
_GRAY = 127.5  # replaces an unreadable image in training
# Two smaller batches are made at a time. Two larger ones would take too much memory.
_OVERLAPPED_BYTES = 2**27

_log = logging.getLogger(__name__)


class FileSource(ImageSource):
    """Image files (JPEG, PNG, BMP, GIF, WebP), read by index.

    A file that becomes unreadable while batches are made does not end the run, unless
    `on_bad_image="raise"`. Training replaces it by a gray image, so that the other images stay in
    their batches. Evaluation leaves it out and logs the number of such files at its end. Both log
    the name of the file.

    Args:
        name: Str, name of the data set, for messages.
        paths: Sequence of file names.
        labels: Sequence of ints, one label per file.
        class_names: Sequence of str, one name per class in index order.
        on_bad_image: `"skip"`, or `"raise"` to raise an error at an unreadable file. Defaults to
            `"skip"`.
        orientations: Sequence of ints, the EXIF orientation (1 to 8) of each image. Defaults to
            None if all images are stored upright.
        split: Str, the split of the data set. Defaults to None.
        notes: Sequence of str, lines that a user should read before training starts. Defaults to
            none.

    Raises:
        ValueError: There is no file, or a label is not in `[0, len(class_names))`.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[str],
        labels: Sequence[int],
        class_names: Sequence[str],
        on_bad_image: str = "skip",
        orientations: Sequence[int] | None = None,
        split: str | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(name, len(paths), len(class_names), class_names, split=split, notes=notes)
        self.paths = list(paths)
        self.labels = check_labels(name, labels, len(paths), self.num_classes).tolist()
        self.orientations = None if orientations is None else list(orientations)
        self.class_counts = count_labels(self.labels, self.num_classes)
        self._on_bad_image = on_bad_image

    @property
    def description(self) -> str:
        return f"folder {super().description}"

    def training_examples(self, seed: int, epoch_size: int, start: int = 0) -> tf.data.Dataset:
        example_at = self._example_function()

        def example(position):
            index = shuffled_indices(position, seed, epoch_size, self.num_examples)
            return position, *example_at(index)

        return tf.data.Dataset.range(start, tf.int64.max).map(example)

    def ordered_examples(self) -> tf.data.Dataset:
        return tf.data.Dataset.range(self.num_examples).map(self._example_function())

    def _example_function(self):
        """Returns a function from an index to `(stored_image, label)`."""
        # File names are bytes, because on Linux they need not be valid text.
        paths = tf.constant([os.fsencode(path) for path in self.paths])
        labels = tf.constant(self.labels, tf.int32)
        if self.orientations is None:
            return lambda index: (tf.gather(paths, index), tf.gather(labels, index))
        orientations = tf.constant(self.orientations, tf.int32)
        return lambda index: (
            (tf.gather(paths, index), tf.gather(orientations, index)),
            tf.gather(labels, index),
        )

    def decode(
        self, stored: tf.Tensor, window_of: Callable[[tf.Tensor], tf.Tensor] | None = None
    ) -> tf.Tensor:
        path, orientation = stored if isinstance(stored, tuple) else (stored, None)
        return decode_image(tf.io.read_file(path), window_of, orientation)

    def map_training(
        self,
        function: Callable,
        replacement: Callable[[], tf.Tensor],
        *,
        seed: int,
        batch_size: int,
        start_step: int = 0,
        shard: Shard | None = None,
    ) -> tf.data.Dataset:
        shard = shard or Shard(batch_size)
        epoch_size = self.steps_per_epoch(batch_size) * batch_size
        batch_size = shard.rows
        example_at = self._example_function()
        unreadable_paths: dict[bytes, bool] = {}
        with tf.Graph().as_default():
            shape = tuple(replacement().shape)

        def examples(step):
            positions = shard.positions(step)
            indices = shuffled_indices(positions, seed, epoch_size, self.num_examples)
            return positions, *example_at(indices)

        def numbered(number, position, stored):
            return number, function(position, stored)

        # One data set for each batch, because only a data set can ignore errors.
        def batch(positions, stored, labels):
            indexed = tf.data.Dataset.from_tensor_slices((tf.range(batch_size), positions, stored))
            readable = indexed.map(
                numbered,
                num_parallel_calls=tf.data.AUTOTUNE,
                deterministic=True,
            ).ignore_errors()
            none = tf.data.Dataset.from_tensors((tf.zeros([0], tf.int32), tf.zeros([0, *shape])))
            return (
                readable.batch(batch_size)
                .concatenate(none)
                .take(1)
                .map(lambda numbers, images: (complete(numbers, images, stored), labels))
            )

        def complete(numbers, images, stored):
            images = tf.cond(
                tf.size(numbers) == batch_size,
                lambda: images,
                lambda: replaced(numbers, images, stored),
            )
            return tf.ensure_shape(images, (batch_size, *shape))

        def replaced(numbers, images, stored):
            paths = stored[0] if isinstance(stored, tuple) else stored
            is_there = tf.scatter_nd(numbers[:, tf.newaxis], tf.ones_like(numbers), [batch_size])
            is_lost = is_there == 0
            report = functools.partial(self._report_all, unreadable_paths)
            is_reported = tf.numpy_function(report, [tf.boolean_mask(paths, is_lost)], tf.bool)
            with tf.control_dependencies([is_reported]):
                filled = tf.repeat(replacement()[tf.newaxis], batch_size, axis=0)
                return tf.tensor_scatter_nd_update(filled, numbers[:, tf.newaxis], images)

        groups = tf.data.Dataset.range(start_step, tf.int64.max).map(examples)
        if 4 * batch_size * math.prod(shape) >= _OVERLAPPED_BYTES:
            # A parallel interleave would make further batches in advance.
            return groups.flat_map(batch)
        # The next batch is begun while the last images of a batch are made.
        return groups.interleave(batch, cycle_length=2, num_parallel_calls=2, deterministic=True)

    def map_evaluation(self, function: Callable, batch_size: int) -> tf.data.Dataset:
        unreadable_paths: dict[bytes, bool] = {}

        def numbered(number, example):
            stored, label = example
            return number, function(stored), label

        def report(first, numbers):
            lost = sorted(set(range(first, numbers[-1])) - set(numbers.tolist()))
            self._report_all(unreadable_paths, [os.fsencode(self.paths[index]) for index in lost])
            if numbers[-1] == self.num_examples:
                self._log_unreadable(unreadable_paths)
            return np.True_

        # Gaps in the numbers show which images were left out.
        def check(first, batch):
            numbers, images, labels = batch
            is_end = numbers[-1] == self.num_examples
            is_reported = tf.cond(
                is_end | (numbers[-1] - first + 1 != tf.size(numbers, tf.int64)),
                lambda: tf.ensure_shape(tf.numpy_function(report, [first, numbers], tf.bool), []),
                lambda: True,
            )
            with tf.control_dependencies([is_reported]):
                return numbers[-1] + 1, (tf.identity(images), labels)

        batches = (
            self.ordered_examples()
            .enumerate()
            .map(numbered, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .ignore_errors()
            .batch(batch_size)
        )
        shape = batches.element_spec[1].shape[1:]
        end = tf.data.Dataset.from_tensors(
            (
                tf.constant([self.num_examples], tf.int64),
                tf.zeros([0, *shape]),
                tf.zeros([0], tf.int32),
            )
        )
        batches = batches.concatenate(end).scan(tf.constant(0, tf.int64), check)
        return batches.filter(lambda images, labels: tf.size(labels) > 0)

    def map_examples(
        self,
        dataset: tf.data.Dataset,
        function: Callable,
        image_shape: tuple[int, ...],
        replace_unreadable: bool,
    ) -> tf.data.Dataset:
        unreadable_paths: dict[bytes, bool] = {}

        def report(path):
            return self._report(path, unreadable_paths)

        def replacement(*example):
            stored, label = example[-2:]
            path = stored[0] if isinstance(stored, tuple) else stored
            is_reported = tf.numpy_function(report, [path], tf.bool)
            with tf.control_dependencies([is_reported]):
                return tf.fill(image_shape, _GRAY), self._replacement_label(label)

        def image_or_replacement(*example):
            # The second image is made only if the first raised an error, which is ignored here.
            example = tf.data.Dataset.from_tensors(example)
            second = example.map(replacement)
            if not replace_unreadable:
                second = second.filter(lambda *_: False)
            return example.map(function).ignore_errors().concatenate(second).take(1)

        images = dataset.interleave(
            image_or_replacement,
            cycle_length=_FILES_AT_ONCE,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        if replace_unreadable:
            return images
        return images.concatenate(self._summary(images.element_spec, unreadable_paths))

    def _replacement_label(self, label):
        """Returns the label of the gray image in the place of an unreadable one."""
        return label

    def _report_all(self, unreadable_paths, paths):
        for path in paths:
            self._report(path, unreadable_paths)
        return np.True_

    def _report(self, path, unreadable_paths):
        """Logs an unreadable file once, or raises the error for it."""
        try:
            decode_image(tf.io.read_file(path))
        except tf.errors.OpError as error:
            line = unreadable(os.fsdecode(path))
            if self._on_bad_image == "raise":
                raise UserError(line) from error
            if path not in unreadable_paths:
                _log.warning("%s; skipped", line)
            unreadable_paths[path] = True
            return np.True_
        raise RuntimeError(
            f"image {readable_name(os.fsdecode(path))} can be read, but preparing it failed"
        )

    def _summary(self, element_spec, unreadable_paths):
        """Returns a dataset without examples that logs the files left out when it is reached."""

        def summarize(_):
            self._log_unreadable(unreadable_paths)
            return np.False_

        def is_example(number):
            return tf.ensure_shape(tf.numpy_function(summarize, [number], tf.bool), [])

        return (
            tf.data.Dataset.range(1)
            .filter(is_example)
            .map(lambda _: tf.nest.map_structure(_zeros, element_spec))
        )

    def _log_unreadable(self, unreadable_paths):
        paths = [os.fsdecode(path) for path in unreadable_paths]
        unreadable_paths.clear()
        if len(paths) == self.num_examples:
            raise UserError(f"none of the {len(paths)} images in {self.name} can be read any more")
        if paths:
            _log.warning(
                "evaluation left out %d of %d images, which cannot be read: %s",
                len(paths),
                self.num_examples,
                some_names(paths),
            )


def unreadable(path, problem=None):
    """Returns the message for a file that cannot be decoded."""
    if problem is None:
        problem = "expected a complete JPEG, PNG, BMP, GIF or WebP file"
        if not pathlib.Path(path).exists():
            problem = "the file does not exist any more"
    return f"image {readable_name(path)} cannot be read: {problem}"


def _zeros(spec):
    return tf.zeros([size or 0 for size in spec.shape], spec.dtype)
