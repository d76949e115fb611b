"""The layers of FSSD after the backbone (arXiv 1712.00960): fusion, pyramid, predictions.

They are steps of `keras_dsnet.models.topology` like those of the backbone, so that the same
executors run them. All their channels are static, except for the inputs of the first convolutions.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_dsnet.layers.sliced_conv2d import padded_size
from keras_dsnet.models.topology import Executor, Step, StepBuilder

HEADS = ("full", "light")
NORMS = ("batch", "group")
_BOX_SIDES = 4
# A map of this height and width shrinks to one position, without padding, as in SSD300.
_LAST_SIDE = 3


class FSSDHead:
    """The layers of FSSD after the backbone.

    Args:
        builder: A `StepBuilder` whose section is the last one of the backbone.
        shapes: Dict from each level of the backbone to `(height, width, channels)`, the largest
            number of channels.
        sections: Dict from each level to the number of its section.
        classes: Int, number of classes without the background.
        channels: Int, output channels of the convolution of each level.
        pyramid: Sequence of ints, channels of the maps of the pyramid.
        anchors: Sequence of ints, number of anchors at each position of these maps.
        head: "full" or "light". A light head has depthwise separable convolutions.
        norm: "batch" or "group".
        activation: Name of a Keras activation.

    Attributes:
        sizes: List of `(height, width)`, the positions of each map of the pyramid.
    """

    def __init__(
        self,
        builder: StepBuilder,
        shapes: Mapping[str, tuple[int, int, int]],
        sections: Mapping[str, int],
        classes: int,
        channels: int,
        pyramid: Sequence[int],
        anchors: Sequence[int],
        head: str,
        norm: str,
        activation: str,
    ):
        self._builder = builder
        self._light = head == "light"
        self._make_norm = builder.batch_norm if norm == "batch" else builder.group_norm
        self._activation = activation
        first = next(iter(shapes.values()))[:2]
        self.sizes = pyramid_sizes(first, len(pyramid))
        self._laterals = {
            level: [
                dataclasses.replace(step, section=sections[level])
                for step in self._lateral(level, shape, channels, first)
            ]
            for level, shape in shapes.items()
        }
        fused = channels * len(shapes)
        self._fusion = [
            *([self._concat("fusion", -1)] if len(shapes) > 1 else []),
            self._norm("fusion_norm", fused),
        ]
        self._maps, self._boxes, self._scores = [], [], []
        for number, (count, boxes) in enumerate(zip(pyramid, anchors, strict=True), start=1):
            previous = self.sizes[number - 2] if number > 1 else None
            self._maps.append(self._map(f"pyramid_{number}", fused, count, previous))
            for predictions, name, size in (
                (self._boxes, "boxes", _BOX_SIDES),
                (self._scores, "scores", classes + 1),
            ):
                predictions.append(self._prediction(f"{name}_{number}", count, boxes, size))
            fused = count
        several = len(pyramid) > 1
        self._joined_boxes = [self._concat("boxes", 1)] if several else []
        self._joined_scores = [self._concat("scores", 1)] if several else []

    @property
    def layers(self) -> list:
        """All layers with variables, in the order in which they run."""
        return [step.layer for step in self.steps if step.layer and step.layer.variables]

    @property
    def static_layers(self) -> list:
        """The convolutions after the fusion, whose channels are the same at every width."""
        parts = [*self._maps, *self._boxes, *self._scores]
        return [step.layer for steps in parts for step in steps if step.kind == "conv"]

    def levels_before(self, section: int) -> list[str]:
        """Returns the source levels of the sections before a section, in order.

        Args:
            section: Int.
        """
        return [level for level, steps in self._laterals.items() if steps[0].section < section]

    @property
    def steps(self) -> list[Step]:
        """All steps, in the order in which they run."""
        parts = [*self._laterals.values(), self._fusion]
        for each in zip(self._maps, self._boxes, self._scores, strict=True):
            parts += each
        return [step for part in [*parts, self._joined_boxes, self._joined_scores] for step in part]

    def fold_fusion_norm(self, executor: Any, section: int = 0) -> None:
        """Folds the batch norm of the fusion into the convolutions of the source levels.

        Its scale and offset of each channel commute with the resizing and the concatenation.

        Args:
            executor: A `PlainExecutor` that folds batch norms, or a `BlockExecutor`, before it runs
                these convolutions.
            section: Int, the first section that the executor runs. The executor must scale the
                levels of earlier sections itself, as a `BlockExecutor` can.
        """
        norm, first = self._fusion[-1], 0
        if not norm.is_batch_norm:
            return
        for steps in self._laterals.values():
            channels = steps[0].layer.filters[-1]
            if steps[0].section >= section:
                executor.fold(steps[0].layer, norm, first)
            else:
                executor.scale_first(norm, first + channels)
            first += channels

    def run_lateral(self, executor: Executor, level: str, x: Any) -> Any:
        """Runs the convolution of one level of the backbone, and resizes to the first level.

        Args:
            executor: An `Executor`.
            level: Str, name of the level.
            x: Features of the level, with any number of their first channels.

        Returns:
            Features of static shape, `[batch, height, width, channels]`.
        """
        return executor.run_aside(self._laterals[level], x)

    def run(self, executor: Executor, sources: Mapping[str, Any]) -> dict[str, Any]:
        """Runs all layers after those of `run_lateral`.

        Args:
            executor: An `Executor`.
            sources: Dict from each level to the output of `run_lateral`.

        Returns:
            Dict of `"boxes"` and `"scores"`; see `FSSD`.
        """
        x: Any = [sources[level] for level in self._laterals]
        x = executor.run(self._fusion, x if len(x) > 1 else x[0])
        boxes, scores = [], []
        for steps, to_boxes, to_scores in zip(self._maps, self._boxes, self._scores, strict=True):
            x = executor.run(steps, x)
            boxes.append(executor.run_aside(to_boxes, x))
            scores.append(executor.run_aside(to_scores, x))
        return {
            "boxes": self._join(executor, self._joined_boxes, boxes),
            "scores": self._join(executor, self._joined_scores, scores),
        }

    def _join(self, executor, steps, parts):
        return executor.run(steps, parts) if steps else parts[0]

    def _lateral(self, level, shape, channels, first):
        name = f"lateral_{level}"
        steps = [self._builder.conv(f"{name}_conv", (shape[-1],), (channels,))]
        if shape[:2] != first:
            steps.append(Step("resize", size=first))
        return steps

    def _map(self, name, inputs, outputs, previous):
        """Makes a map of the pyramid from the one before, or the first one from the fusion."""
        options = {"strides": 1 if previous is None else 2}
        if previous == (_LAST_SIDE, _LAST_SIDE):
            options = {"padding": "valid"}
        if not self._light:
            conv = self._builder.conv(f"{name}_conv", (inputs,), (outputs,), 3, **options)
            return [conv, self._norm(f"{name}_norm", outputs)]
        return [
            *self._depthwise(name, inputs, **options),
            self._builder.conv(f"{name}_pointwise", (inputs,), (outputs,)),
            self._norm(f"{name}_norm", outputs),
        ]

    def _depthwise(self, name, channels, **options):
        depthwise = self._builder.depthwise(f"{name}_depthwise", (channels,), 3, **options)
        return [depthwise, self._norm(f"{name}_depthwise_norm", channels)]

    def _prediction(self, name, inputs, anchors, size):
        steps = self._depthwise(name, inputs) if self._light else []
        conv = self._builder.conv(
            f"{name}_conv",
            (inputs,),
            (anchors * size,),
            1 if self._light else 3,
            use_bias=True,
            # He's values suit layers before a ReLU, and would start with large logits.
            kernel_initializer="glorot_uniform",
        )
        reshape = keras.layers.Reshape((-1, size), dtype=self._dtype)
        return [*steps, conv, self._stock(reshape, f"{name}_reshape")]

    def _norm(self, name, channels):
        return self._make_norm(name, (channels,), self._activation)

    def _concat(self, name, axis):
        layer = keras.layers.Concatenate(axis, dtype=self._dtype)
        return self._stock(layer, f"{name}_concat")

    def _stock(self, layer, name):
        layer.name = name
        return Step("stock", layer, self._builder.section)

    @property
    def _dtype(self):
        return self._builder.dtype


def pyramid_sizes(first: tuple[int, int], num_levels: int | None = None) -> list[tuple[int, int]]:
    """Returns the height and width of the maps of the pyramid.

    Each map has half the height and width of the one before. A map of 3 x 3 positions shrinks to
    one position. So 38 gives 19, 10, 5, 3, 1, and 64 gives 32, 16, 8, 4, 2, 1.

    Args:
        first: `(height, width)` of the first map.
        num_levels: Int, number of maps. Defaults to as many as there are down to one position.
    """
    sizes = [first]
    while len(sizes) != num_levels and (num_levels or max(sizes[-1]) > 1):
        last = sizes[-1]
        valid = last == (_LAST_SIDE, _LAST_SIDE)
        options = ("valid", 3, 1) if valid else ("symmetric", 3, 2)
        height, width = (padded_size(side, *options) or 1 for side in last)
        sizes.append((height, width))
    return sizes
