"""The widths that the gates of a network may choose."""

import warnings

from keras_dsnet.models.path import check_routes


class RoutingSpace:
    """The candidate widths of every gate, and whether the gates were trained to choose.

    Args:
        num_widths: int, the widths of each gate.
        routes: tuple of ints, ascending; None: all widths.

    Attributes:
        gates_trained: bool.
    """

    def __init__(self, num_widths, routes=None):
        self._num_widths = num_widths
        self.routes = range(num_widths) if routes is None else routes
        self.gates_trained = False
        self._warned = False

    @property
    def routes(self):
        """The candidate widths: a tuple of ints, ascending; settable."""
        return self._routes

    @routes.setter
    def routes(self, routes):
        self._routes = check_routes(routes, self._num_widths)

    def candidates(self):
        """Returns the routes to choose from: of untrained gates, with a warning, the widest."""
        if self.gates_trained:
            return self.routes
        if not self._warned:
            self._warned = True
            warnings.warn(
                "The gates of this network are not trained: every image takes the widest route "
                f"({self.routes[-1]}). Train them with keras_dsnet.training.GateTrainer, or pass "
                "`path=`.",
                stacklevel=3,
            )
        return self.routes[-1:]
