"""The widths that the gates of a network may choose."""

import sys
import warnings

from keras.src.backend.common.symbolic_scope import in_symbolic_scope

from keras_dsnet.models.path import check_routes

_PACKAGES = ("keras", "keras_dsnet", "tensorflow")


class RoutingSpace:
    """The candidate widths of every gate, and whether the gates were trained to choose.

    Args:
        num_widths: int, the widths of each gate.
        routes: tuple of ints, ascending; None: all widths.
    """

    def __init__(self, num_widths, routes=None):
        self._num_widths = num_widths
        self._gates_trained = False
        self._warned = self._warned_of_routes = False
        self.routes = range(num_widths) if routes is None else routes

    @property
    def routes(self):
        """The candidate widths: a tuple of ints, ascending; settable."""
        return self._routes

    @routes.setter
    def routes(self, routes):
        self._routes = check_routes(routes, self._num_widths)

    @property
    def gates_trained(self):
        """Whether the slimming heads were trained; settable, for the routes of that time."""
        return self._gates_trained

    @gates_trained.setter
    def gates_trained(self, trained):
        self._gates_trained = trained

    def change_routes(self, routes):
        """Sets the routes; under trained gates a warning says once what that means."""
        before = self._routes
        self.routes = routes
        if self._gates_trained and self._routes != before and not self._warned_of_routes:
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

    def candidates(self):
        """Returns the routes to choose from: of untrained gates, with a warning, the widest."""
        if self._gates_trained:
            return self.routes
        # Keras also calls a network to learn its shapes, when a file is loaded say, whose gates
        # are known to be trained only afterwards.
        if not self._warned and not in_symbolic_scope():
            self._warned = True
            warnings.warn(
                "The gates of this network are not trained: every image takes the widest route "
                f"({self.routes[-1]}). Train them with keras_dsnet.training.GateTrainer, or pass "
                "`path=`.",
                stacklevel=_level_of_caller(),
            )
        return self.routes[-1:]


def _level_of_caller():
    """Returns the `stacklevel` at which a warning names the user's line, not one of Keras's."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _PACKAGES:
        level, frame = level + 1, frame.f_back
    return level
