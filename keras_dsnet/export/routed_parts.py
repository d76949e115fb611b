"""The parts of a routed file as functions of tensors: the front with its gate, and the branches."""

import numpy as np
import tensorflow as tf

from keras_dsnet.export.block_executor import BlockExecutor
from keras_dsnet.models.activation import activate
from keras_dsnet.models.cost_counter import CostCounter
from keras_dsnet.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD

LOWEST = np.finfo("float32").min


class RoutedParts:
    """What a routed file is made of, for one network of one gate.

    Args:
        network: a `DynamicSlimmableNetwork`.
        routes: tuple of candidate widths, ascending.
        cuts: dict from route to its cuts; see `plan_cuts`.
        integer: bool: for an int8 file.
        raw: bool: images are uint8 pixels, which the front normalises.
    """

    def __init__(self, network, routes, cuts, integer=False, raw=False):
        self._network = network
        self._routes = routes
        self._cuts = cuts
        self._integer = integer
        self._raw = raw

    def front(self, image, min_width, max_width):
        """Runs everything up to the gate, and the gate.

        Args:
            image: `[1, height, width, 3]`: float32, preprocessed; or raw, uint8.
            min_width: int32 `[1]`.
            max_width: int32 `[1]`.

        Returns:
            Dict of `features` `[1, height, width, channels]`, `path` int32 `[1]`, and `position`,
            int32: the path's place among the routes.
        """
        if self._raw:
            image = self._normalise(tf.cast(image, tf.float32))
        executor = BlockExecutor(0, (0,), self._integer)
        (features,) = executor.run(self._network.sections[0], (image,))
        (gate,) = self._network.slimming_gates
        scores = gate.route_scores(tf.cast(executor.scores[0], tf.float32), self._routes)
        position = self._choose(scores[0], min_width, max_width)
        path = tf.reshape(tf.gather(tf.constant(self._routes, tf.int32), position), [1])
        return {"features": features, "path": path, "position": position}

    def branch(self, route):
        """Returns the function of the features that runs one route: `output` `[1, classes]`."""
        network = self._network

        def run(features):
            executor = BlockExecutor(route, self._cuts[route], self._integer)
            groups = executor.run(network.sections[1], (features,))
            if network.include_top:
                return {"output": activate(network.classifier_activation, groups[0])}
            # Every branch of a file has outputs of the same shape.
            missing = self._most_channels() - sum(group.shape[-1] for group in groups)
            outputs = tf.concat(groups, -1)
            return {"output": tf.pad(outputs, [[0, 0]] * 3 + [[0, missing]])}

        return run

    def features_of(self, images):
        """Returns the features of images, one by one: a list of arrays; `images` as the front's."""
        # Not traced: TensorFlow's graph optimiser ends the process on some of these graphs.
        return [self.front(tf.constant(image), [0], [0])["features"].numpy() for image in images]

    def _normalise(self, image):
        """Normalises pixels by a depthwise convolution, which int8 has for three channels too."""
        if self._integer:
            # Pixels are int8 as they are: one step each.
            image = tf.quantization.fake_quant_with_min_max_args(image, 0, 255)
        scale = 1 / (255 * np.array(IMAGENET_STD, "float32"))
        offset = -np.array(IMAGENET_MEAN, "float32") / np.array(IMAGENET_STD, "float32")
        kernel = tf.constant(scale.reshape(1, 1, 3, 1))
        return tf.nn.depthwise_conv2d(image, kernel, [1, 1, 1, 1], "VALID") + offset

    def _choose(self, scores, min_width, max_width):
        """Returns the place of the best route within the bounds, int32.

        Bounds that hold no route give the nearest route above, else the widest.
        """
        routes = tf.constant(self._routes, tf.int32)
        allowed = tf.logical_and(routes >= min_width, routes <= max_width)
        best = tf.argmax(tf.where(allowed, scores, LOWEST), output_type=tf.int32)
        below = tf.reduce_sum(tf.cast(routes < min_width, tf.int32))
        nearest = tf.minimum(below, len(self._routes) - 1)
        # Int8 has no score below its least: where all within the bounds have that one, a route
        # outside of them may come first. Routes ascend, so the nearest is the first within.
        return tf.where(tf.gather(allowed, best), best, nearest)

    def _most_channels(self):
        shape = (64, 64, 3)
        counter = CostCounter(self._network.resolve_path(self._routes[-1]))
        for steps in self._network.sections:
            shape = counter.run(steps, shape)
        return shape[-1]
