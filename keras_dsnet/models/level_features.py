"""Features of a network at named levels, for detectors or other models around it."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_dsnet.models import arguments
from keras_dsnet.models.costs import CostCounter
from keras_dsnet.models.path import Path, PathLike
from keras_dsnet.models.routing import SectionRunner
from keras_dsnet.models.topology import Executor, Step, split_levels

# Divisible by every product of strides that a network may have.
_SIDE = 1024


class LevelFeatures:
    """The part of a `DynamicSlimmableNetwork` that returns features at named levels.

    The network inherits from this class.
    """

    _runner: SectionRunner
    _image_shape: tuple
    _images: Any
    gate_candidates: Any
    resolve_path: Any

    @property
    def levels(self) -> dict[str, int]:
        """The stride of each level: the height of the images divided by that of its features.

        The levels are the ends of the stages, in order, such as "stage_5".
        """
        names = [step.level for steps in self._runner.sections for step in steps if step.level]
        image_shape = (_SIDE, _SIDE, self._image_shape[-1])
        shapes = level_shapes(self, names, self.resolve_path(0), image_shape)
        return {name: _SIDE // shape[0] for name, shape in shapes.items()}

    def run_steps(self, executor: Executor, section: int, x: Any) -> Any:
        """Runs the steps of one section by any executor, such as a `CostCounter`.

        Args:
            executor: An `Executor`.
            section: Int.
            x: Input of the section, of the kind that the executor takes.
        """
        return self._runner.run_steps(executor, section, x)

    def features(
        self,
        inputs: Any,
        path: PathLike | None = None,
        levels: Sequence[str] | None = None,
        training: bool = False,
        executor: Executor | None = None,
    ) -> dict[str, tf.Tensor]:
        """Returns the features at named levels. Layers after the last of them do not run.

        Args:
            inputs: float32 `[batch, height, width, 3]`, preprocessed.
            path: As in a call. By default the gates choose a path for each image, and only this
                path is computed.
            levels: Sequence of names of `levels`. Defaults to the last levels of the three largest
                strides. In a MobileNet these are the 5th, 11th and 13th block, with strides 8, 16
                and 32.
            training: Bool. True needs a path.
            executor: The executor to run, such as a `MaskedExecutor`, instead of a path.

        Returns:
            Dict from the name of each level to features `[batch, height, width, channels]`. Those
            of a routed batch are padded with zeros to the channels of the widest of `routes`.

        Raises:
            ValueError: If the network has no such level or path, the images do not have the size or
                the channels of `input_shape`, or `training` is True without a path.
        """
        levels = check_levels(self, levels)
        images = self._images(inputs)
        if executor is not None:
            return self._level_runner(levels).run(images, None, executor=executor)
        if path is not None:
            return self._level_runner(levels).run_path(images, self.resolve_path(path), training)
        arguments.refuse_training(training)
        candidates = self.gate_candidates()
        network: Any = self
        widest = network.routes[-1]
        runner = self._level_runner(levels, widest)
        if not runner.slimming_gates:
            return runner.run_path(images, self.resolve_path(widest))
        return runner.route(images, candidates)[0]

    def _level_runner(self, levels, padded_to=None):
        key = (levels, padded_to)
        if key not in self._runner.level_runners:
            channels = {}
            if padded_to is not None:
                path = self.resolve_path(padded_to)
                shape = (_SIDE, _SIDE, self._image_shape[-1])
                shapes = level_shapes(self, levels, path, shape)
                channels = {name: shape[-1] for name, shape in shapes.items()}
            wiring = _Levels(self, levels, channels)
            self._runner.level_runners[key] = SectionRunner(
                sum(wiring.sections, ()), self._image_shape, wiring.run_steps
            )
        return self._runner.level_runners[key]


class _Levels:
    """Runs a network section by section and collects the features of its levels.

    Args:
        network: A `DynamicSlimmableNetwork`.
        levels: Tuple of names of levels.
        channels: Dict from a level to the number of channels that its features are padded to.
    """

    def __init__(self, network, levels, channels):
        self.sections = sections_up_to(network, levels)
        self._parts = [split_levels(steps, levels) for steps in self.sections]
        self._channels = channels
        self._levels = levels

    def run_steps(self, executor, section, state):
        x, found = (state, {}) if section == 0 else state
        for steps, level in self._parts[section]:
            x = executor.run(steps, x)
            if level is not None:
                found = {**found, level: self._padded(x, level)}
        if section < len(self.sections) - 1:
            return x, found
        return {level: found[level] for level in self._levels}

    def _padded(self, x, level):
        if level not in self._channels:
            return x
        missing = self._channels[level] - x.shape[-1]
        return tf.pad(x, [[0, 0], [0, 0], [0, 0], [0, missing]]) if missing else x


def check_levels(network: Any, levels: Sequence[str] | None) -> tuple[str, ...]:
    """Returns names of levels as a tuple, in the order of the network.

    Args:
        network: A `DynamicSlimmableNetwork`.
        levels: Sequence of names. None takes the last level of each of the three largest strides.

    Raises:
        ValueError: If the network does not have such levels.
    """
    known = network.levels
    if not known:
        raise ValueError(
            f"A {type(network.spec).__name__} has no levels: its `features` must name them by "
            "`keras_dsnet.models.topology.with_level`. Received: a network without levels"
        )
    if levels is None:
        last = {stride: name for name, stride in known.items()}
        levels = [last[stride] for stride in sorted(last)[-3:]]
    names = (levels,) if isinstance(levels, str) else tuple(levels)
    unique = set(names) if all(isinstance(name, str) for name in names) else set()
    if not names or len(unique) < len(names) or not unique <= set(known):
        raise ValueError(
            f"`levels` must be different names among {tuple(known)}. Received: levels={levels!r}"
        )
    return tuple(name for name in known if name in unique)


def sections_up_to(network: Any, levels: Sequence[str]) -> tuple[tuple[Step, ...], ...]:
    """Returns the sections of a network up to the last of some levels.

    Args:
        network: A `DynamicSlimmableNetwork`.
        levels: Names of levels of the network.

    Returns:
        Tuple of tuples of `Step`.
    """
    sections: list = []
    for steps in network.sections:
        ends = [index for index, step in enumerate(steps) if step.level in levels]
        sections.append((steps, ends[-1] + 1 if ends else 0))
    last = max(index for index, (_, end) in enumerate(sections) if end)
    steps, end = sections[last]
    return (*network.sections[:last], steps[:end])


def level_shapes(
    network: Any, levels: Sequence[str], path: Path, image_shape: Sequence[int]
) -> dict[str, tuple[int, int, int]]:
    """Returns the shape of the features of one image at some levels.

    Args:
        network: A `DynamicSlimmableNetwork`.
        levels: Names of levels of the network.
        path: A `Path` of Python ints.
        image_shape: `(height, width, channels)`, all ints.

    Returns:
        Dict from each level to `(height, width, channels)`, in the order of the network.
    """
    if not levels:
        return {}
    wiring = _Levels(network, tuple(levels), {})
    counter = CostCounter(path)
    state: Any = image_shape
    for section in range(len(wiring.sections)):
        state = wiring.run_steps(counter, section, state)
    return state
