"""The settings of routing: how an image gets its path.

Three routings exist. With "gate" the slimming heads choose a path before it runs (Sec. 3.2 of the
paper). With "confidence" the narrowest step runs first, and an image goes on to a wider step where
its largest probability is too small. With "gate+confidence" the gates choose where an image starts,
and its confidence decides whether it goes on.
"""

import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from keras_dsnet.models.costs import worst_case_madds
from keras_dsnet.models.path import check_routes
from keras_dsnet.utils.argument_checks import check_bool, check_number
from keras_dsnet.utils.private_names import in_symbolic_scope, was_called_symbolically

ROUTINGS = ("gate", "confidence", "gate+confidence")
DEFAULT_THRESHOLD = 0.7

# Steps that may cost an image more than this many times the widest path cause a warning.
_COSTLY = 2
# Sides of the images that costs are counted for where the network leaves the size open.
_OPEN_SIDE = 224
_PACKAGES = ("keras", "keras_dsnet", "tensorflow")


class RoutingSettings:
    """The part of a `DynamicSlimmableNetwork` that holds the settings of its routing.

    The network inherits from this class. The settings are plain attributes: a function that
    TensorFlow has traced keeps those of its trace.
    """

    spec: Any
    include_top: bool

    def _set_up_routing(self, routes, gates_trained, routing, confidence_steps, thresholds):
        self._gates_trained = False
        self._routes: tuple[int, ...] = ()
        self._warned_of_gates = self._warned_of_routes = self._warned_of_costs = False
        self._confidence_steps: tuple[int, ...] | None = None
        self._thresholds: tuple | None = None
        self._routing = "gate"
        self.replace_routes(range(self.num_widths) if routes is None else routes)
        self.gates_trained = gates_trained
        self.confidence_steps = confidence_steps
        self.thresholds = thresholds
        self.routing = routing

    def _forget_traces(self):
        # What Keras has traced for `evaluate` and `predict` keeps the settings of its trace.
        for name in ("test_function", "predict_function"):
            if getattr(self, name, None) is not None:
                setattr(self, name, None)

    @property
    def num_gates(self) -> int:
        """Number of slimming heads, which is the length of a path."""
        return self.spec.num_gates

    @property
    def num_widths(self) -> int:
        """Number of widths that each gate can choose from."""
        return self.spec.num_widths

    @property
    def routing(self) -> str:
        """How an image gets its path: "gate", "confidence" or "gate+confidence". Settable.

        "gate": the gates choose a path before it runs. Gates that are not trained give every image
        the widest route, with a warning.

        "confidence": all images run the first of `confidence_steps`. An image whose confidence is
        at most the first of `thresholds` runs the next step too, and so on. Its output is that of
        the last step that it ran. This needs no trained gate. All steps share one run of the layers
        before the first gate. A network with several gates uses each step at all gates.

        "gate+confidence": the gates choose where an image starts among `routes`. It goes on by
        the threshold of the widest step that is not wider than the largest width of its path (the
        first threshold if there is no such step), to the next step that is wider than its path.

        The confidence of an image is its largest softmax probability, computed in float32 from the
        logits with any `classifier_activation`. An image whose confidence is NaN goes on. A
        threshold of 0 lets no image go on, and a threshold of 1 lets every image go on.
        """
        return self._routing

    @routing.setter
    def routing(self, routing: str) -> None:
        self._routing = check_routing(routing, self.include_top)
        self._forget_traces()
        if routing != "gate":
            self._warn_of_costly_steps()

    @property
    def routes(self) -> tuple[int, ...]:
        """The candidate widths of every gate, a tuple of ints in ascending order. Settable.

        A slimming head scores every width, and the scores of widths outside the routes are masked.
        Routes can therefore change without new weights. Trained gates know only the routes of their
        training, so another choice warns once.
        """
        return self._routes

    @routes.setter
    def routes(self, routes: Sequence[int]) -> None:
        before = self._routes
        self.replace_routes(routes)
        is_wider_or_narrower = self._routes[-1] != before[-1]
        if is_wider_or_narrower and not self.include_top and was_called_symbolically(self):
            warnings.warn(
                "The features have the channels of the widest route, and a functional model was "
                f"built around those of width {before[-1]}: build it again around those of width "
                f"{self._routes[-1]}, or keep {before[-1]} among the routes.",
                stacklevel=_level_of_caller(),
            )
        if self.gates_trained and self._routes != before and not self._warned_of_routes:
            self._warned_of_routes = True
            new = [width for width in self._routes if width not in before]
            scores = (
                f" The gates were not trained to choose {new}: these widths have untrained scores "
                "until the gates are trained again."
                if new
                else ""
            )
            warnings.warn(
                f"The gates were trained to choose among the routes {before}, and now choose among "
                f"{self._routes}: the scores of all other widths are masked.{scores}",
                stacklevel=_level_of_caller(),
            )

    def replace_routes(self, routes: Iterable[int]) -> None:
        """Sets `routes` without the warning, for code that trains the gates on them next.

        Args:
            routes: Iterable of ints, candidate widths in ascending order.
        """
        self._routes = check_routes(routes, self.num_widths)
        self._forget_traces()

    @property
    def gates_trained(self) -> bool:
        """Whether the slimming heads were trained. Settable, and saved with the weights."""
        return self._gates_trained

    @gates_trained.setter
    def gates_trained(self, trained: bool) -> None:
        self._gates_trained = check_bool("gates_trained", trained)
        self._forget_traces()

    @property
    def confidence_steps(self) -> tuple[int, ...]:
        """The widths that "confidence" tries in turn, a tuple of ascending ints. Settable.

        By default, or after they are set to None, they are the narrowest and the widest of
        `routes`. Steps whose worst case costs more than twice the widest path warn once.
        """
        if self._confidence_steps is not None:
            return self._confidence_steps
        return tuple(sorted({self.routes[0], self.routes[-1]}))

    @confidence_steps.setter
    def confidence_steps(self, steps: Sequence[int] | None) -> None:
        self._forget_traces()
        if steps is None:
            self._confidence_steps = None
            return
        self._confidence_steps = check_routes(steps, self.num_widths, "confidence_steps")
        self._warn_of_costly_steps()

    def _warn_of_costly_steps(self):
        if self._warned_of_costs:
            return
        network: Any = self
        shape = tuple(side or _OPEN_SIDE for side in network.input_shape[1:])
        routing, runs = "confidence", "runs all"
        if self.routing == "gate+confidence":
            routing, runs = self.routing, "starts at a route of the gates and runs all wider"
        most = worst_case_madds(network, routing, self.confidence_steps, input_shape=shape)
        widest = network.madds("widest", shape)
        if most > _COSTLY * widest:
            self._warned_of_costs = True
            warnings.warn(
                f"An image that {runs} confidence steps {self.confidence_steps} costs "
                f"{most / 1e6:.2f}M multiply-adds, {most / widest:.2f} times those of the widest "
                f"path ({widest / 1e6:.2f}M). Fewer steps cost less.",
                stacklevel=_level_of_caller(),
            )

    @property
    def thresholds(self) -> tuple[float, ...]:
        """One threshold in [0, 1] for each confidence step except the last. Settable.

        An image goes on to the next step where its confidence is at most the threshold. The
        defaults are 0.7, also after other steps are set, because thresholds belong to their steps.
        `keras_dsnet.training.calibrate_confidence` chooses them. None sets the defaults.
        """
        steps = self.confidence_steps
        if self._thresholds is not None and self._thresholds[0] == steps:
            return self._thresholds[1]
        return (DEFAULT_THRESHOLD,) * (len(steps) - 1)

    @thresholds.setter
    def thresholds(self, thresholds: Sequence[float] | None) -> None:
        self._forget_traces()
        if thresholds is None:
            self._thresholds = None
        else:
            steps = self.confidence_steps
            self._thresholds = (steps, check_thresholds(thresholds, steps))

    def resolve_steps(
        self, steps: Sequence[int] | None, thresholds: Sequence[float] | None
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Returns steps and thresholds of confidence, with their defaults.

        Args:
            steps: Sequence of ints. None for `confidence_steps`.
            thresholds: Sequence of floats. None for the network's, or for 0.7 each if `steps` are
                given.

        Raises:
            ValueError: If they are wrong.
        """
        if steps is None:
            steps = self.confidence_steps
            thresholds = self.thresholds if thresholds is None else thresholds
        steps = check_routes(steps, self.num_widths, "steps")
        if thresholds is None:
            thresholds = (DEFAULT_THRESHOLD,) * (len(steps) - 1)
        return steps, check_thresholds(thresholds, steps)

    def reset_gates(self) -> None:
        """Makes all widths routes and marks the gates as untrained, as in a new network.

        The settings of routing by confidence become those of a new network too.
        """
        self._gates_trained = False
        self._confidence_steps = self._thresholds = None
        self._routing = "gate"
        self.replace_routes(range(self.num_widths))

    def routing_config(self) -> dict:
        """Returns the settings as arguments of the network's constructor.

        Steps and thresholds that have their defaults are None.
        """
        given = self._thresholds is not None and self._thresholds[0] == self.confidence_steps
        return {
            "routes": self.routes,
            "gates_trained": self.gates_trained,
            "routing": self.routing,
            "confidence_steps": self._confidence_steps,
            "thresholds": self.thresholds if given else None,
        }

    def gate_candidates(self) -> tuple[int, ...]:
        """Returns the routes that gates choose from: only the widest, with a warning, if untrained.

        The warning comes once.
        """
        if self.gates_trained:
            return self.routes
        # Keras also calls a network symbolically to infer its shapes, for example before it loads
        # a file that holds trained gates.
        if not self._warned_of_gates and not in_symbolic_scope():
            self._warned_of_gates = True
            instead = "Pass `path=`, or use a network whose gates are trained."
            if self.include_top:
                instead = "Train them with keras_dsnet.training.GateTrainer, or pass `path=`."
                if self.routing == "gate":
                    instead = instead.replace(", or", ", set `routing` to 'confidence', or")
            warnings.warn(
                "The gates of this network are not trained: every image takes the widest route "
                f"({self.routes[-1]}). {instead}",
                stacklevel=_level_of_caller(),
            )
        return self.routes[-1:]


def check_routing(routing: str, include_top: bool) -> str:
    """Returns the name of a routing.

    Args:
        routing: "gate", "confidence" or "gate+confidence".
        include_top: Bool, whether the network has a classifier.

    Raises:
        ValueError: If there is no such routing, or it needs a classifier and there is none.
    """
    if not isinstance(routing, str) or routing not in ROUTINGS:
        raise ValueError(f"`routing` must be one of {ROUTINGS}. Received: routing={routing!r}")
    if routing != "gate" and not include_top:
        raise ValueError(
            "A network without its classifier has no confidence: with `include_top=False`, "
            f"`routing` must be 'gate'. Received: routing={routing!r}"
        )
    return routing


def check_thresholds(thresholds: Sequence[float], steps: Sequence[int]) -> tuple[float, ...]:
    """Returns thresholds of confidence as a tuple of floats.

    Args:
        thresholds: Sequence of numbers in [0, 1], or one number for two steps.
        steps: Tuple of ints, the confidence steps.

    Raises:
        ValueError: If there is not one threshold in [0, 1] for each step except the last.
    """
    number = "a number" if len(steps) == 2 else f"{len(steps) - 1} numbers"
    right = f"{number} from 0 to 1, one for each of the steps {tuple(steps)} except the last"
    if len(steps) == 1:
        right = f"empty for the one step {tuple(steps)}"
    given: Any = thresholds
    try:
        given = tuple(given)
    except TypeError:
        given = (given,)
    message = f"`thresholds` must be {right}. Received: thresholds={thresholds!r}"
    if isinstance(thresholds, (str, bytes, Mapping, Set)) or len(given) != len(steps) - 1:
        raise ValueError(message)
    try:
        return tuple(check_number("thresholds", t, "", lambda t: 0 <= t <= 1) for t in given)
    except ValueError:
        raise ValueError(message) from None


def _level_of_caller():
    """Returns the `stacklevel` at which a warning shows the line of the user's code."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _PACKAGES:
        level, frame = level + 1, frame.f_back
    return level
