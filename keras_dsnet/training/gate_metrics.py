"""What stage II reports of its steps."""

import keras
import tensorflow as tf


class GateMetrics:
    """Means of the losses of stage II, of its accuracies, of MAdds, and the shares of each width.

    Args:
        choice_madds: `ChoiceMAdds`.
        routes: tuple of candidate widths.
        num_gates: int.

    Attributes:
        metrics: list of `keras.Metric`. A share is named "share_2" by its width, or with several
            gates "share_0_2" by gate and width.
    """

    def __init__(self, choice_madds, routes, num_gates):
        self._choice_madds = choice_madds
        self._routes = routes
        names = ["loss", "classification_loss", "complexity_loss", "sgs_loss"]
        names += ["accuracy", "gate_accuracy", "easy"]
        self._means = {name: keras.metrics.Mean(name) for name in names}
        self._madds = keras.metrics.Mean("madds", dtype="float64")
        prefixes = ["share"] if num_gates == 1 else [f"share_{gate}" for gate in range(num_gates)]
        self._shares = [
            [keras.metrics.Mean(f"{prefix}_{width}") for width in routes] for prefix in prefixes
        ]
        shares = [share for gate in self._shares for share in gate]
        self.metrics = [*self._means.values(), self._madds, *shares]

    def update(self, losses, results):
        """Adds a batch.

        Args:
            losses: dict of scalars, of `GateTrainer.losses`.
            results: dict of values per image, of the same.

        Returns:
            Dict from the name of every metric to its mean so far.
        """
        for name, value in losses.items():
            # Image by image, since the last batch may be smaller.
            self._means[name].update_state(tf.fill(tf.shape(results["right"]), value))
        for name, key in (("accuracy", "right"), ("gate_accuracy", "gate_right"), ("easy", "easy")):
            self._means[name].update_state(results[key])
        self._madds.update_state(self._choice_madds.exact(results["choices"]))
        for shares, choice in zip(self._shares, results["choices"]):
            taken = tf.one_hot(tf.argmax(choice, axis=1), len(self._routes))
            for share, values in zip(shares, tf.unstack(taken, axis=1)):
                share.update_state(values)
        return {metric.name: metric.result() for metric in self.metrics}
