"""The traced functions of a network: one per section and width, made once."""

import functools

import tensorflow as tf

from keras_dsnet.models.path import Path
from keras_dsnet.models.sliced_executor import SlicedExecutor


class TracedSections:
    """Traces each section of a network once per pair of widths and keeps the functions.

    Channels are static in each function and the batch is not, so that one trace serves every batch.

    Args:
        sections: tuple of tuples of `Step`.
        image_shape: `(height, width, channels)`; height and width may be None.

    Attributes:
        trace_count: how many times Python traced a section.
    """

    def __init__(self, sections, image_shape):
        self._sections = sections
        self._image_shape = image_shape
        self._functions = {}
        self._any_width = {}
        self.trace_count = 0

    def __call__(self, section, before, after, x):
        """Runs one section.

        Args:
            section: int.
            before: `(width, statistics row)` of the section before (None for the first section).
            after: `(width, statistics row)` of this section.
            x: its input.

        Returns:
            `(outputs, scores)`; scores is None behind the last gate.
        """
        key = (section, before, after)
        if key not in self._functions:
            self._functions[key] = self._trace(section, after, x)
        return self._functions[key](x)

    def _trace(self, section, after, x):
        steps = self._sections[section]
        path = section_path(section, after)

        def run(inputs):
            self.trace_count += 1
            executor = SlicedExecutor(path)
            outputs = executor.run(steps, inputs)
            return outputs, (executor.scores or [None])[0]

        # What the model leaves open, batch size and image size, is open here too.
        sizes = zip((None, *self._image_shape[:2]), x.shape[:3])
        shape = (*(size if fixed else None for fixed, size in sizes), x.shape[3])
        return tf.function(run, autograph=False).get_concrete_function(
            tf.TensorSpec(shape, x.dtype)
        )

    def any_width(self, first, x, path):
        """Runs section 0, or with `first=1` all others, by one trace for every path.

        Slower than the functions of one width, and traced once where those are traced 14 times:
        right for an evaluation of all paths.

        Args:
            first: 0 or 1.
            x: input of section `first`.
            path: a `Path` of Python ints.

        Returns:
            Features of section 0, or the last section's outputs.
        """
        if first not in self._any_width:
            self._any_width[first] = tf.function(
                functools.partial(self._run_any_width, first),
                autograph=False,
                reduce_retracing=True,
            )
        return self._any_width[first](x, tf.constant(path.widths), tf.constant(path.statistics))

    def _run_any_width(self, first, x, widths, rows):
        executor = SlicedExecutor(Path(tuple(tf.unstack(widths)), tuple(tf.unstack(rows))))
        for steps in self._sections[1:] if first else self._sections[:1]:
            x = executor.run(steps, x)
        return x


def section_path(section, after):
    """Returns a `Path` for one section alone; what stands for the other sections is never read.

    Args:
        section: int.
        after: `(width, statistics row)` of the section.
    """
    width, row = after
    return Path((width,) * (section + 1), (row,) * (section + 1))
