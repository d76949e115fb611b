"""Runs a network section by section, traced once per width or inside of the caller's trace."""

import tensorflow as tf
from keras.src.backend.common.stateless_scope import in_stateless_scope

from keras_dsnet.models.sliced_executor import SlicedExecutor
from keras_dsnet.models.topology import split_sections
from keras_dsnet.models.traced_sections import TracedSections, section_path


class SectionRunner:
    """The sections of a network, and the ways to run them along a path.

    Args:
        steps: tuple of `Step`: the topology.
        image_shape: `(height, width, channels)`; height and width may be None.

    Attributes:
        steps: as given.
        sections: the steps, cut behind every slimming gate.
    """

    def __init__(self, steps, image_shape):
        self.steps = steps
        self.sections = split_sections(steps)
        self._traced = TracedSections(self.sections, image_shape)

    @property
    def trace_count(self):
        """How many sections were traced so far, at one width each."""
        return self._traced.trace_count

    def run(self, x, path, first=0, last=None, executor=None, **kwargs):
        """Runs sections `first` to `last` and traces nothing by itself.

        Args:
            x: input of the first of these sections.
            path: a `Path`, whose entries may be int32 scalar tensors.
            first: int.
            last: int, inclusive; None: the last.
            executor: an executor to run with; None: a `SlicedExecutor` of `path`.
            **kwargs: of the `SlicedExecutor`.

        Returns:
            Features, or the last section's logits.
        """
        executor = executor or SlicedExecutor(path, **kwargs)
        end = None if last is None else last + 1
        for steps in self.sections[first:end]:
            x = executor.run(steps, x)
        return x

    def run_path(self, images, path, training=False):
        """Runs all sections, by traced functions where widths are known and nothing is learnt.

        Args:
            images: float32 `[batch, height, width, 3]`.
            path: a `Path`.
            training: bool.

        Returns:
            The last section's outputs.
        """
        static = all(isinstance(width, int) for width in path.widths)
        if training or not static or not _may_trace():
            return self.run(images, path, training=training)
        x = images
        rows = list(zip(path.widths, path.statistics))
        for section, (before, after) in enumerate(zip([None, *rows], rows)):
            x, _ = self._traced(section, before, after, x)
        return x

    def run_section(self, section, before, after, x):
        """Runs one section at inference; arguments and results are those of `TracedSections`."""
        if _may_trace():
            return self._traced(section, before, after, x)
        executor = SlicedExecutor(section_path(section, after))
        outputs = executor.run(self.sections[section], x)
        return outputs, (executor.scores or [None])[0]

    def run_any_width(self, first, x, path):
        """Runs the front (`first=0`) or the rest (1) along any path by one trace for all."""
        return self._traced.any_width(first, x, path)


def _may_trace():
    """A traced function holds the variables themselves; a stateless scope has others."""
    return tf.executing_eagerly() and not in_stateless_scope()
