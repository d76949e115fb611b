"""Batched dynamic inference: each image runs only the sub-network that its gates choose."""

import functools

import numpy as np
import tensorflow as tf

from keras_dsnet.models.executors import SlicedExecutor
from keras_dsnet.models.path import Path
from keras_dsnet.models.topology import split_sections
from keras_dsnet.utils.private_names import in_stateless_scope


class Router:
    """Splits a batch by the widths that the gates choose and runs each part sliced.

    Sec. 3.2 of the paper for a whole batch: the images that chose the same width go through the
    same sub-network together, at its own shapes, and the results are put back in order. At the
    next gate the batch is split anew.

    Args:
        network: a `DynamicSlimmableNetwork`.
    """

    def __init__(self, network):
        self._network = network

    def __call__(self, images, routes):
        """Routes a batch.

        Args:
            images: `[batch, height, width, 3]`.
            routes: tuple of candidate widths.

        Returns:
            `(outputs, widths)`: the last section's outputs, and int32 `[batch, num_gates]`.
        """
        groups, widths = self._route(images, routes, self._network.num_gates)
        outputs = [group[2] for group in groups]
        if not self._network.include_top:
            # Of any batch as many: a layer behind the network has one number of channels.
            channels = self._network.output_shape[-1]
            outputs = [_padded(output, channels) for output in outputs]
        return _in_order([group[1] for group in groups], outputs), widths

    def choose(self, images, routes):
        """Returns the chosen widths alone, int32 `[batch, num_gates]`.

        The sections behind the last gate are not run.
        """
        return self._route(images, routes, self._network.num_gates - 1)[1]

    def _route(self, images, routes, last_section):
        """Returns the groups behind section `last_section`, and the widths that were chosen.

        A group is `(width, indices of its images, outputs, scores)`.
        """
        network = self._network
        split = _split_eagerly if tf.executing_eagerly() else _split_in_graph
        order = tf.range(tf.shape(images)[0])
        outputs, scores = network.run_section(0, None, (0, 0), images)
        groups, chosen = [(0, order, outputs, scores)], []
        for section, gate in enumerate(network.slimming_gates, start=1):
            choices = [(w, i, x, gate.choose(s, routes)) for w, i, x, s in groups]
            chosen.append(_in_order([c[1] for c in choices], [c[3] for c in choices]))
            if section > last_section:
                break
            groups = []
            for width in routes:
                parts = [
                    split(self._runner(section, before, width), x, index, choice, width)
                    for before, index, x, choice in choices
                ]
                parts = [part for part in parts if part is not None]
                if parts:
                    groups.append((width, *_merge(parts)))
        return groups, tf.stack(chosen, axis=1)

    def _runner(self, section, before, width):
        def run(x):
            return self._network.run_section(section, (before, before), (width, width), x)

        return run


def _split_eagerly(run, x, index, choice, width):
    """Runs the images that chose `width`; None where there are none."""
    mine = np.flatnonzero(choice.numpy() == width)
    if not mine.size:
        return None
    # A batch that all goes one way needs no copy.
    if mine.size < choice.shape[0]:
        x, index = tf.gather(x, mine), tf.gather(index, mine)
    return (index, *run(x))


def _split_in_graph(run, x, index, choice, width):
    """Inside a traced function every width has a branch, which runs where an image chose it."""
    mine = tf.where(choice == width)[:, 0]
    x, index = tf.gather(x, mine), tf.gather(index, mine)
    traced = tf.function(run, autograph=False).get_concrete_function(
        tf.TensorSpec(x.shape, x.dtype)
    )
    empty = [spec for spec in traced.structured_outputs if spec is not None]

    def chosen():
        return [output for output in traced(x) if output is not None]

    def none_chosen():
        if all(None not in spec.shape[1:] for spec in empty):
            return [tf.zeros((0, *spec.shape[1:]), spec.dtype) for spec in empty]
        # The size of the features is open: one blank image tells it.
        blank = tf.zeros(tf.concat([[1], tf.shape(x)[1:]], 0), x.dtype)
        return [output[:0] for output in traced(blank) if output is not None]

    outputs = tf.cond(tf.size(mine) > 0, chosen, none_chosen)
    return (index, outputs[0], outputs[1] if len(outputs) == 2 else None)


def _merge(parts):
    """Joins what came to one width from several widths before: `(index, outputs, scores)`."""
    if len(parts) == 1:
        return parts[0]
    return tuple(None if part[0] is None else tf.concat(part, 0) for part in zip(*parts))


def _in_order(indices, values):
    """Puts the rows of the groups back into the order of the batch."""
    # One group may still be a merge of several, in the order of the gate before.
    if len(indices) == 1 and tf.executing_eagerly() and np.all(np.diff(indices[0]) > 0):
        return values[0]
    return tf.gather(tf.concat(values, 0), tf.math.invert_permutation(tf.concat(indices, 0)))


def _padded(features, channels):
    """Adds channels of zeros, up to `channels`."""
    missing = channels - features.shape[-1]
    if not missing:
        return features
    return tf.pad(features, [[0, 0]] * (len(features.shape) - 1) + [[0, missing]])


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
