"""Batched dynamic inference: each image runs only the sub-networks that it is routed to."""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_dsnet.models.executors import SlicedExecutor
from keras_dsnet.models.path import Path
from keras_dsnet.models.topology import Executor, Step, split_sections
from keras_dsnet.utils.private_names import in_stateless_scope


class SectionRunner:
    """Runs the sections of a network, along one path or along a path per image.

    `route` implements Sec. 3.2 of the paper for a whole batch. Section 0 runs on all images. At
    each gate the batch is split by the chosen width, every part runs the next section at its own
    shapes, and at the end the results are put back in the order of the batch.

    At inference each section is traced once per pair of widths, and once more where the slimming
    head at its end runs. Channels are static in the traced functions and the batch size is not, so
    one trace serves every batch.

    What one section hands to the next is a tensor of features, or a nest of tensors with the batch
    on their first axis, such as features with the outputs at earlier levels.

    Args:
        steps: Tuple of `Step`, the topology.
        image_shape: `(height, width, channels)`. Height and width may be None.
        run_steps: Function of an executor, the number of a section and the input of the section,
            which returns its output. Defaults to running the steps of the section.

    Attributes:
        sections: Tuple of tuples of `Step`, split after every slimming gate.
        slimming_gates: List of the `DoubleHeadedGate` layers that choose a width, in order.
        trace_count: Number of sections traced so far, each at one width.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        image_shape: tuple[int | None, ...],
        run_steps: Callable[[Executor, int, Any], Any] | None = None,
    ):
        self.run_steps = run_steps or self._run_steps_of_section
        self.sections = split_sections(steps)
        self.slimming_gates = [step.layer for step in steps if step.is_slimming_gate]
        self.trace_count = 0
        self._image_shape = image_shape
        self._functions: dict[tuple, Callable] = {}
        self._lock = threading.RLock()
        self._any_width_functions: dict[int, Callable] = {}
        # Of the same network up to some levels; see `LevelFeatures`.
        self.level_runners: dict[tuple, SectionRunner] = {}

    def _run_steps_of_section(self, executor, section, x):
        return executor.run(self.sections[section], x)

    def route(
        self,
        images: tf.Tensor,
        routes: tuple[int, ...],
        channels: int | None = None,
        trunk: tuple | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs a batch, with the path that the gates choose for each image.

        Args:
            images: Tensor `[batch, height, width, 3]`.
            routes: Tuple of ints, candidate widths of every gate in ascending order.
            channels: Int. The outputs are padded with zeros to this number of channels, so that
                images of different widths fit in one tensor. Defaults to no padding.
            trunk: The result of section 0, `(features, scores)`, where it is known.

        Returns:
            `(outputs, widths)`: the outputs of the last section and int32 `[batch, num_gates]`.
        """
        trunk = trunk or self.run_section(0, None, (0, 0), images)
        groups, widths = self._run_groups(trunk, routes, len(self.slimming_gates))
        outputs = [outputs for _, _, outputs, _ in groups]
        if channels is not None:
            outputs = [_pad_channels(output, channels) for output in outputs]
        return _in_batch_order([index for _, index, _, _ in groups], outputs), widths

    def choose_widths(self, images: tf.Tensor, routes: tuple[int, ...]) -> tf.Tensor:
        """Returns only the widths that the gates choose, int32 `[batch, num_gates]`.

        The section after the last gate does not run. The arguments are those of `route`.
        """
        trunk = self.run_section(0, None, (0, 0), images)
        return self._run_groups(trunk, routes, len(self.slimming_gates) - 1)[1]

    def _run_groups(self, trunk, routes, last_section):
        """Runs the outputs of section 0 up to `last_section` and returns `(groups, widths)`.

        A group holds the images that run at the same width, as a tuple
        `(width, indices of its images in the batch, outputs, scores)`.
        """
        split = _split_eagerly if tf.executing_eagerly() else _split_in_graph
        order = tf.range(_batch_size(trunk[0]))
        groups, chosen = [(0, order, *trunk)], []
        for section, gate in enumerate(self.slimming_gates, start=1):
            choices = [(w, i, x, gate.choose(scores, routes)) for w, i, x, scores in groups]
            chosen.append(_in_batch_order([c[1] for c in choices], [c[3] for c in choices]))
            if section > last_section:
                break
            groups = []
            for width in routes:
                parts = []
                for before, index, x, choice in choices:
                    run = functools.partial(
                        self.run_section, section, (before, before), (width, width)
                    )
                    parts.append(split(run, x, index, choice, width))
                parts = [part for part in parts if part is not None]
                if parts:
                    groups.append((width, *_merge(parts)))
        return groups, tf.stack(chosen, axis=1)

    def route_by_confidence(
        self,
        images: tf.Tensor,
        steps: Sequence[int],
        thresholds: Sequence[float],
        routes: Sequence[int] | None = None,
        run_last: bool = True,
        trunk: tuple | None = None,
        start: tuple | None = None,
        confidence: Callable[[Any], tf.Tensor] | None = None,
    ) -> tuple[Any, tf.Tensor, tf.Tensor]:
        """Runs a batch step by step: an image goes on where its confidence is too small.

        Section 0 runs once, on all images. Each step runs the later sections along the path of one
        width, only on the images that reach it and at their own shapes.

        Args:
            images: Tensor `[batch, height, width, 3]`.
            steps: Tuple of ints, widths in ascending order.
            thresholds: Tuple of floats, one for each step except the last.
            routes: Tuple of ints, candidate widths of the gates, which then choose where an image
                starts. Defaults to a start at the first step.
            run_last: Bool. False leaves out the last step, which decides nothing, so that the
                logits of the images that reach it are those of an earlier step.
            trunk: The result of section 0, `(features, scores)`, where it is known.
            start: What `route` returned with these routes, where it is known.
            confidence: Function of the outputs of the last section that returns a float32
                `[batch]` from 0 to 1. Defaults to `confidence_of`, for logits.

        Returns:
            `(outputs, paths, starts)`: outputs of the last section, and int32 `[batch, num_gates]`,
            the path that gave an image its outputs and the path at which it started.
        """
        confidence = confidence or confidence_of
        asked = routes is not None
        trunk = trunk or self.run_section(0, None, (0, 0), images, with_scores=asked)
        split = _split_eagerly if tf.executing_eagerly() else _split_in_graph
        order = tf.range(_batch_size(trunk[0]))
        gates, first = len(self.slimming_gates), 0
        if routes is None:
            starts = tf.fill((tf.shape(order)[0], gates), steps[0])
            outputs, _ = self.run_rest(steps[0], trunk[0])
            first = 1
        else:
            outputs, starts = start or self.route(images, tuple(routes or ()), trunk=trunk)
        # The next step of an image is the first that is wider than the path that it has run.
        wider = tf.reduce_max(starts, 1)[:, None] >= tf.constant([steps])
        position = tf.reduce_sum(tf.cast(wider, tf.int32), 1)
        pending, paths = _next_step(confidence(outputs), position, thresholds), starts
        for number, width in list(enumerate(steps))[first:]:
            paths = tf.where((pending == number)[:, None], width, paths)
            if number == len(steps) - 1 and not run_last:
                break
            run = functools.partial(self.run_rest, width)
            part = split(run, trunk[0], order, pending, number)
            if part is None:
                continue
            index, rest, _ = part
            after = tf.fill(tf.shape(index), number + 1)
            after = _next_step(confidence(rest), after, thresholds)
            outputs = _replace_rows(outputs, index, rest)
            pending = tf.tensor_scatter_nd_update(pending, index[:, None], after)
        return outputs, paths, starts

    def run_rest(self, width: int, x: tf.Tensor) -> tuple[tf.Tensor, None]:
        """Runs all sections after section 0 along the path of one width, without slimming heads.

        Args:
            width: Int.
            x: Output of section 0.

        Returns:
            `(outputs, None)`, as `run_section` returns them.
        """
        before, after = (0, 0), (width, width)
        for section in range(1, len(self.sections)):
            x, _ = self.run_section(section, before, after, x, with_scores=False)
            before = after
        return x, None

    def run_path(self, images: tf.Tensor, path: Path, training: bool = False) -> tf.Tensor:
        """Runs all sections along one path.

        At inference with Python ints as widths, the sections run as traced functions.

        Args:
            images: Tensor `[batch, height, width, 3]`.
            path: A `Path`.
            training: Bool.

        Returns:
            The outputs of the last section.
        """
        static = all(isinstance(width, int) for width in path.widths)
        if training or not static or not _may_trace():
            return self.run(images, path, training=training)
        x = images
        rows = list(zip(path.widths, path.statistics))[: len(self.sections)]
        for section, (before, after) in enumerate(zip([None, *rows], rows)):
            x, _ = self.run_section(section, before, after, x, with_scores=False)
        return x

    def run(
        self,
        x: tf.Tensor,
        path: Any,
        first: int = 0,
        last: int | None = None,
        executor: Executor | None = None,
        **kwargs: Any,
    ) -> tf.Tensor:
        """Runs sections `first` to `last`, without tracing them.

        Args:
            x: Input of section `first`.
            path: A `Path`, whose entries may be int32 scalar tensors.
            first: Int.
            last: Int, inclusive. Defaults to the last section.
            executor: The executor to run. Defaults to a `SlicedExecutor` of `path`.
            **kwargs: Further arguments of the `SlicedExecutor`.

        Returns:
            Features, or the logits of the last section.
        """
        executor = executor or SlicedExecutor(path, with_scores=False, **kwargs)
        end = None if last is None else last + 1
        for section in range(len(self.sections))[first:end]:
            x = self.run_steps(executor, section, x)
        return x

    def run_section(
        self,
        section: int,
        before: tuple[int, int] | None,
        after: tuple[int, int],
        x: tf.Tensor,
        with_scores: bool = True,
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Runs one section at inference.

        Args:
            section: Int.
            before: `(width, statistics row)` of the section before, None for the first section.
            after: `(width, statistics row)` of this section.
            x: Input of the section.
            with_scores: Bool, whether the slimming head at the end of the section runs.

        Returns:
            `(outputs, scores)`. The scores are those of the gate at the end of the section. They
            are None after the last gate, and without `with_scores`.
        """
        with_scores = with_scores and section < len(self.slimming_gates)
        if not _may_trace():
            return self._run_sliced(section, after, x, with_scores)
        key = (section, before, after, with_scores)
        if key not in self._functions:
            # Threads that call a new network at once must not trace a function each.
            with self._lock:
                if key not in self._functions:
                    self._functions[key] = self._trace(section, after, x, with_scores)
        return self._functions[key](x)

    def _trace(self, section, after, x, with_scores):
        def run(inputs):
            self.trace_count += 1
            return self._run_sliced(section, after, inputs, with_scores)

        def spec(features):
            # The batch size is open, and so is each side that the network leaves open.
            sizes = zip((None, *self._image_shape[:2]), features.shape[:3])
            shape = (*(size if fixed else None for fixed, size in sizes), features.shape[3])
            return tf.TensorSpec(shape, features.dtype)

        return tf.function(run, autograph=False).get_concrete_function(
            tf.nest.map_structure(spec, x)
        )

    def _run_sliced(self, section, after, x, with_scores):
        width, row = after
        # The executor reads only the entry of this section.
        path = Path((width,) * (section + 1), (row,) * (section + 1))
        executor = SlicedExecutor(path, with_scores=with_scores)
        outputs = self.run_steps(executor, section, x)
        return outputs, (executor.scores or [None])[0]

    def run_any_width(self, first: int, x: tf.Tensor, path: Path) -> tf.Tensor:
        """Runs section 0, or with `first=1` all sections after it, by one trace for all paths.

        This trace is slower than one per width but is made once instead of once per width, which
        suits an evaluation of all paths.

        Args:
            first: 0 or 1.
            x: Input of section `first`.
            path: A `Path` of Python ints.

        Returns:
            Features of section 0, or the outputs of the last section.
        """
        if first not in self._any_width_functions:
            self._any_width_functions[first] = tf.function(
                functools.partial(self._run_dynamic_widths, first),
                autograph=False,
                reduce_retracing=True,
            )
        run = self._any_width_functions[first]
        return run(x, tf.constant(path.widths), tf.constant(path.statistics))

    def _run_dynamic_widths(self, first, x, widths, rows):
        path = Path(tuple(tf.unstack(widths)), tuple(tf.unstack(rows)))
        return self.run(x, path, first, last=None if first else 0)


def _may_trace():
    """Returns whether a traced function may run a section now.

    It reads the variables themselves, and a stateless scope replaces their values.
    """
    return tf.executing_eagerly() and not in_stateless_scope()


def confidence_of(logits: tf.Tensor) -> tf.Tensor:
    """Returns the largest softmax probability of each image, computed in float32.

    Args:
        logits: `[batch, classes]`.

    Returns:
        float32 `[batch]`.
    """
    return tf.reduce_max(tf.nn.softmax(tf.cast(logits, tf.float32)), axis=1)


def _next_step(confidence, position, thresholds):
    """Returns the step that each image runs next, int32 `[batch]`, or -1 for none.

    Args:
        confidence: float32 `[batch]`, of the path that an image has run.
        position: int32 `[batch]`, the number of steps that are not wider than that path.
        thresholds: Tuple of floats.
    """
    # An image narrower than every step has the first threshold, and the last step has none.
    thresholds = tf.constant([*(thresholds[:1] or (0.0,)), *thresholds, 0.0], tf.float32)
    limit = tf.gather(thresholds, position)
    # A softmax may round to more than 1. A confidence of NaN is not above any threshold.
    unsure = (limit >= 1) | ((limit > 0) & ~(confidence > limit))
    return tf.where(unsure, position, -1)


def _split_eagerly(run, x, index, choice, width):
    """Runs the images that chose `width`. Returns `(index, outputs, scores)`, or None without any.

    Args:
        run: Function of features that returns `(outputs, scores)`.
        x: Features of a group.
        index: Indices of the group's images in the batch.
        choice: int32 `[len(index)]`, the widths that these images chose.
        width: Int.
    """
    rows = np.flatnonzero(choice.numpy() == width)
    if not rows.size:
        return None
    # Features that all go to one width need no copy.
    if rows.size < choice.shape[0]:
        x, index = _gather(x, rows), tf.gather(index, rows)
    return (index, *run(x))


def _split_in_graph(run, x, index, choice, width):
    """Does what `_split_eagerly` does, inside a traced function.

    Every width has a branch of the graph, which runs only if an image chose the width.
    """
    rows = tf.where(choice == width)[:, 0]
    x, index = _gather(x, rows), tf.gather(index, rows)
    # A partial function would add its free arguments to the signature.
    traced = tf.function(lambda features: run(features), autograph=False).get_concrete_function(
        tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), x)
    )
    structure = traced.structured_outputs
    # Outputs that a branch of `tf.cond` does not have are None, and stay so.
    specs = [spec for spec in tf.nest.flatten(structure) if spec is not None]

    def run_traced(features):
        return [output for output in tf.nest.flatten(traced(features)) if output is not None]

    def none_chosen():
        if all(None not in spec.shape[1:] for spec in specs):
            return [tf.zeros((0, *spec.shape[1:]), spec.dtype) for spec in specs]
        # The size of the outputs is open here, so one blank image runs to find it.
        blank = tf.nest.map_structure(
            lambda t: tf.zeros(tf.concat([[1], tf.shape(t)[1:]], 0), t.dtype), x
        )
        return [output[:0] for output in run_traced(blank)]

    outputs = iter(tf.cond(tf.size(rows) > 0, lambda: run_traced(x), none_chosen))
    flat = [None if spec is None else next(outputs) for spec in tf.nest.flatten(structure)]
    return (index, *tf.nest.pack_sequence_as(structure, flat))


def _batch_size(x):
    return tf.shape(tf.nest.flatten(x)[0])[0]


def _gather(x, rows):
    return tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), x)


def _replace_rows(x, rows, values):
    def replace(tensor, new):
        return tf.tensor_scatter_nd_update(tensor, rows[:, None], new)

    return tf.nest.map_structure(replace, x, values)


def _concat(parts):
    """Joins nests of tensors along the batch. Entries that are None in all parts stay None."""
    return tf.nest.map_structure(lambda *t: None if t[0] is None else tf.concat(t, 0), *parts)


def _merge(parts):
    """Joins the images that reach one width from several previous widths."""
    return parts[0] if len(parts) == 1 else _concat(parts)


def _in_batch_order(indices, values):
    """Puts the rows of all groups back in the order of the batch."""
    # A single group may still be a merge, in the order of the gate before.
    if len(indices) == 1 and tf.executing_eagerly() and np.all(np.diff(indices[0]) > 0):
        return values[0]
    return _gather(_concat(values), tf.math.invert_permutation(tf.concat(indices, 0)))


def _pad_channels(features, channels):
    missing = channels - features.shape[-1]
    if not missing:
        return features
    return tf.pad(features, [[0, 0]] * (len(features.shape) - 1) + [[0, missing]])
