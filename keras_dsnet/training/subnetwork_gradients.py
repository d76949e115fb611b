"""The gradients of several sub-networks of one step, added up."""

import tensorflow as tf

from keras_dsnet.layers.slice_tape import SliceTape, add_slices, whole_gradient


class SubnetworkGradients:
    """Runs sub-networks forwards and backwards on one batch, and adds up their gradients.

    The front of the network, before the first gate, runs once for all of them, what follows once
    for each.

    Args:
        model: a `DynamicSlimmableNetwork`.
        images: `[batch, height, width, 3]`.
        paths: list of `Path`: all that `add` will run.
        scale: function that turns a loss into what is differentiated.
        ascending: bool: no path is added after a wider one; saves operations.
    """

    def __init__(self, model, images, paths, scale, ascending=False):
        self._model = model
        self._scale = scale
        self._ascending = ascending
        self._total, self._reads = {}, {}
        self._fronts = {path.widths[0]: None for path in paths}
        self._front_gradients = dict.fromkeys(self._fronts)
        for width in self._fronts:
            alike = [path for path in paths if path.widths[0] == width]
            self._fronts[width] = self._run_front(images, alike)

    def _run_front(self, images, paths):
        """Runs section 0 for all `paths` at once; batch norm moves as often as there are paths."""
        with SliceTape() as tape:
            features = self._model.run_sections(
                images, paths[0], last=0, training=True, repeats=len(paths)
            )
        return tape, features

    def add(self, path, loss):
        """Runs one sub-network and adds its gradients.

        Args:
            path: one of the paths.
            loss: function of logits, float32 `[batch, classes]`, that returns a scalar.

        Returns:
            `(loss, logits)`: tensors.
        """
        width = path.widths[0]
        # Nothing makes a sub-network wait for the one before: on two cores that saves 7 to 10 % of
        # a step's memory, and costs 3 to 11 % of its time.
        features = tf.identity(self._fronts[width][1])
        with SliceTape(self._reads) as tape:
            tape.watch(features)
            logits = self._model.run_sections(features, path, first=1, training=True)
            logits = tf.cast(logits, tf.float32)
            value = loss(logits)
            scaled = self._scale(value)
        (gradient,), gradients = tape.gradient(scaled, [features])
        add_slices(self._total, gradients, ascending=self._ascending)
        others = self._front_gradients[width]
        self._front_gradients[width] = gradient if others is None else others + gradient
        return value, logits

    def result(self, variables):
        """Returns the sums of the gradients by whole variables, once all paths are added.

        Args:
            variables: list of `keras.Variable`.
        """
        for width, (tape, features) in self._fronts.items():
            add_slices(self._total, tape.gradient(features, (), self._front_gradients[width])[1])
        return [whole_gradient(self._total, variable) for variable in variables]
