"""Images as files on a disk."""

import logging
import os
import pathlib

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
from keras_dsnet.utils import UserError

_FILES_AT_ONCE = 16
_GRAY = 127.5

_log = logging.getLogger(__name__)


class FileSource(ImageSource):
    """Image files (JPEG, PNG, BMP, GIF, WebP), read by index.

    A file that turns out to be unreadable while batches are made does not end the run: training
    sees a gray image in its place, so that no other image changes its batch, evaluation leaves it
    out, and either way the log names the file. At its end an evaluation logs how many it left out.

    Args:
        name: the data set's name.
        paths: list of file names.
        labels: list of ints, a label per file.
        class_names: a name per class.
        on_bad_image: `"skip"`, or `"raise"` to end the run at an unreadable file.
        orientations: list of ints, the EXIF orientation (1 to 8) that each image is turned by, or
            None where all are upright as stored.
        split: the split that the files are, or None.
        notes: lines that a user should read before the work starts.

    Raises:
        ValueError: there is no file, or a label is not in `[0, number of classes)`.
    """

    def __init__(
        self,
        name,
        paths,
        labels,
        class_names,
        on_bad_image="skip",
        orientations=None,
        split=None,
        notes=(),
    ):
        super().__init__(name, len(paths), len(class_names), class_names, split=split, notes=notes)
        self.paths = list(paths)
        self.labels = check_labels(name, labels, len(paths), self.num_classes).tolist()
        self.orientations = None if orientations is None else list(orientations)
        self.class_counts = count_labels(self.labels, self.num_classes)
        self._on_bad_image = on_bad_image

    @property
    def description(self):
        return f"folder {super().description}"

    def training_examples(self, seed, epoch_size, start=0):
        lookup = self._lookup()

        def example(number):
            index = shuffled_indices(number, seed, epoch_size, self.num_examples)
            return number, *lookup(index)

        return tf.data.Dataset.range(start, tf.int64.max).map(example)

    def ordered_examples(self):
        return tf.data.Dataset.range(self.num_examples).map(self._lookup())

    def decode(self, stored, window_of=None):
        path, orientation = stored if isinstance(stored, tuple) else (stored, None)
        return decode_image(tf.io.read_file(path), window_of, orientation)

    def map_examples(self, dataset, function, image_shape, replace_unreadable):
        unreadable_paths = {}

        def report(path):
            return self._report(path, unreadable_paths)

        def gray(*example):
            stored, label = example[-2:]
            path = stored[0] if isinstance(stored, tuple) else stored
            is_reported = tf.numpy_function(report, [path], tf.bool)
            with tf.control_dependencies([is_reported]):
                return tf.fill(image_shape, _GRAY), label

        def one(*example):
            example = tf.data.Dataset.from_tensors(example)
            instead = example.map(gray)
            if not replace_unreadable:
                instead = instead.filter(lambda *_: False)
            return example.map(function).ignore_errors().concatenate(instead).take(1)

        images = dataset.interleave(
            one,
            cycle_length=_FILES_AT_ONCE,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        if replace_unreadable:
            return images
        return images.concatenate(self._summary(images.element_spec, unreadable_paths))

    def _summary(self, element_spec, unreadable_paths):
        """A dataset of no examples that logs, when it is reached, what was left out."""

        def summarize(_):
            self._summarize(unreadable_paths)
            return np.False_

        def is_example(number):
            return tf.ensure_shape(tf.numpy_function(summarize, [number], tf.bool), [])

        return (
            tf.data.Dataset.range(1)
            .filter(is_example)
            .map(lambda _: tuple(tf.zeros(spec.shape, spec.dtype) for spec in element_spec))
        )

    def _summarize(self, unreadable_paths):
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

    def _lookup(self):
        # As bytes: on Linux, a file's name need not be text.
        paths = tf.constant([os.fsencode(path) for path in self.paths])
        labels = tf.constant(self.labels, tf.int32)
        if self.orientations is None:
            return lambda index: (tf.gather(paths, index), tf.gather(labels, index))
        orientations = tf.constant(self.orientations, tf.int32)
        return lambda index: (
            (tf.gather(paths, index), tf.gather(orientations, index)),
            tf.gather(labels, index),
        )

    def _report(self, path, unreadable_paths):
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


def unreadable(path, problem=None):
    """The message for a file that is not an image."""
    if problem is None:
        problem = "expected a whole JPEG, PNG, BMP, GIF or WebP file"
        if not pathlib.Path(path).exists():
            problem = "the file does not exist any more"
    return f"image {readable_name(path)} cannot be read: {problem}"
