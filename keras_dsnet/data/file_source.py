"""Image files on a disk, as an image source."""

import functools
import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_dsnet.data.class_folders import readable_name, some_names
from keras_dsnet.data.encoded_image import decode_image
from keras_dsnet.data.image_source import (
    ImageSource,
    batched,
    check_labels,
    count_labels,
    in_parallel,
    is_large_batch,
    shuffled_indices,
)
from keras_dsnet.data.sharding import Shard
from keras_dsnet.utils import UserError

_log = logging.getLogger(__name__)

# Unreadable files that any data set may have, as long as they are not half of it.
_FEW = 20


class FileSource(ImageSource):
    """Image files (JPEG, PNG, BMP, GIF, WebP), read by index.

    A file that becomes unreadable while batches are made does not end the run, unless
    `on_bad_image="raise"`. Training replaces it by a gray image, so that the other images stay in
    their batches. Evaluation leaves it out and logs the number of such files at its end. Both log
    the name of the file. Where the folder of a file is gone too, or training has met a tenth of the
    files unreadable, a `UserError` ends the run.

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
        replacement: Callable,
        *,
        seed: int,
        batch_size: int,
        start_step: int = 0,
        shard: Shard | None = None,
        padding: Any = None,
    ) -> tf.data.Dataset:
        shard = shard or Shard(batch_size)
        epoch_size = self.steps_per_epoch(batch_size) * batch_size
        example_at = self._example_function()
        unreadable_paths: dict[bytes, bool] = {}
        # So many gray images are no training on the data set.
        most = max(self.num_examples // 10, min(_FEW, self.num_examples // 2))
        report = functools.partial(self._report, unreadable_paths=unreadable_paths, most=most)

        @tf.function
        def make(position, index):
            # Traced once for both data sets below.
            return function(position, *example_at(index))

        def replace(_, index):
            stored, label = example_at(index)
            path = stored[0] if isinstance(stored, tuple) else stored
            is_reported = tf.numpy_function(report, [path], tf.bool)
            with tf.control_dependencies([is_reported]):
                return tf.nest.map_structure(tf.identity, replacement(label))

        def make_or_replace(*example):
            example = tf.data.Dataset.from_tensors(example)
            # The replacement is made only if the image raised an error, which is ignored here.
            return example.map(make).ignore_errors().concatenate(example.map(replace)).take(1)

        def batch(step):
            positions = shard.positions(step)
            indices = shuffled_indices(positions, seed, epoch_size, self.num_examples)
            examples = tf.data.Dataset.from_tensor_slices((positions, indices))
            # One data set for each batch, because only a data set can ignore errors. It is empty
            # if an image is unreadable, and only then each image gets a data set of its own. The
            # error is ignored after `batch`, since TensorFlow can then write the images into the
            # batch as they are made, which takes half of the memory.
            complete = batched(in_parallel(examples, make), shard.rows, padding).ignore_errors()
            mended = batched(examples.flat_map(make_or_replace), shard.rows, padding)
            return complete.concatenate(mended).take(1)

        steps = tf.data.Dataset.range(start_step, tf.int64.max)
        image, _ = steps.map(lambda step: replacement(example_at(step)[1])).element_spec
        if is_large_batch(shard.rows, image.shape):
            # A parallel interleave would make further batches in advance.
            return steps.flat_map(batch)
        # The next batch is begun while the last images of a batch are made.
        return steps.interleave(batch, cycle_length=2, num_parallel_calls=2, deterministic=True)

    def map_evaluation(
        self, function: Callable, batch_size: int, every: int = 1, padding: Any = None
    ) -> tf.data.Dataset:
        unreadable_paths: dict[bytes, bool] = {}
        count = -(-self.num_examples // every)

        def numbered(number, example):
            return number, function(*example)

        def report(first, numbers):
            lost = sorted(set(range(first, numbers[-1])) - set(numbers.tolist()))
            for number in lost:
                self._report(os.fsencode(self.paths[number * every]), unreadable_paths)
            if numbers[-1] == count:
                self._log_unreadable(unreadable_paths, count)
            return np.True_

        # Gaps in the numbers show which images were left out.
        def check(first, batch):
            numbers, example = batch
            is_end = numbers[-1] == count
            is_reported = tf.cond(
                is_end | (numbers[-1] - first + 1 != tf.size(numbers, tf.int64)),
                lambda: tf.ensure_shape(tf.numpy_function(report, [first, numbers], tf.bool), []),
                lambda: True,
            )
            with tf.control_dependencies([is_reported]):
                return numbers[-1] + 1, tf.nest.map_structure(tf.identity, example)

        examples = self.ordered_examples().shard(every, 0).enumerate()
        batches = batched(
            in_parallel(examples, numbered).ignore_errors(),
            batch_size,
            None if padding is None else (tf.constant(0, tf.int64), padding),
            drop_remainder=False,
        )
        nothing = tf.nest.map_structure(_zeros, batches.element_spec[1])
        end = tf.data.Dataset.from_tensors((tf.constant([count], tf.int64), nothing))
        batches = batches.concatenate(end).scan(tf.constant(0, tf.int64), check)
        return batches.filter(lambda images, _: tf.shape(images)[0] > 0)

    def _report(self, path, unreadable_paths, most=None):
        """Logs an unreadable file once, or raises the error for it or for too many of them."""
        try:
            decode_image(tf.io.read_file(path))
        except tf.errors.OpError as error:
            line = unreadable(os.fsdecode(path))
            if self._on_bad_image == "raise":
                raise UserError(line) from error
            if path not in unreadable_paths:
                _log.warning("%s; skipped", line)
            unreadable_paths[path] = True
            folder = pathlib.Path(os.fsdecode(path)).parent
            # Unlike `Path.is_dir`, this is false where a file server does not answer any more.
            if not os.path.isdir(folder):  # noqa: PTH112
                raise UserError(
                    f"{line}, nor does its folder: is the disk of {self.name} still there?"
                ) from error
            if most is not None and len(unreadable_paths) > most:
                raise UserError(
                    f"{len(unreadable_paths)} of the {self.num_examples} images in {self.name} "
                    f"cannot be read any more, such as {readable_name(os.fsdecode(path))}: restore "
                    "or remove them, and start the run again"
                ) from error
            return np.True_
        raise RuntimeError(
            f"image {readable_name(os.fsdecode(path))} can be read, but preparing it failed"
        )

    def _log_unreadable(self, unreadable_paths, count):
        paths = [os.fsdecode(path) for path in unreadable_paths]
        unreadable_paths.clear()
        if len(paths) == count:
            raise UserError(f"none of the {len(paths)} images in {self.name} can be read any more")
        if paths:
            _log.warning(
                "evaluation left out %d of %d images, which cannot be read: %s",
                len(paths),
                count,
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
