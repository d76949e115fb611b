"""A network with early exits on the layers of a supernet's widest path, a peer of Table 2."""

import itertools
import json
import pathlib

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.models.costs import CostCounter
from keras_dsnet.models.routing import confidence_of
from keras_dsnet.models.subnetwork import PlainExecutor
from keras_dsnet.training.confidence import StepResults, likeliest
from keras_dsnet.training.losses import is_right, label_cross_entropy

# An exit has a depthwise separable block that halves the resolution and doubles the channels, as
# the first block of a stage does. Exits without a convolution after early features are weak.
_EXIT_STRIDES, _EXIT_GROWTH = 2, 2


def build_early_exit(network, exits):
    """Returns the widest path of a network with early exits, of stock Keras layers.

    The layers have the initial values of the network, and the last exit is its classifier.

    Args:
        network: A `DynamicSlimmableNetwork` of depthwise separable blocks, with random weights.
        exits: Tuple of ascending ints, the numbers of the blocks that an exit follows.

    Returns:
        `(model, madds)`: a `keras.Model` from images to a list of logits, one for each exit, and an
        int array with the multiply-adds that each exit adds to those before it.

    Raises:
        ValueError: If the network does not have a block.
    """
    path = network.resolve_path("widest")
    executor, counter = PlainExecutor(path, fold_batch_norm=False), CostCounter(path)
    shape = network.input_shape[1:]
    x = inputs = keras.Input(shape, name="image")
    segments = split_at_exits(network, exits)
    outputs, madds = [], []
    for name, steps in zip([f"exit_{number}" for number in exits], segments):
        x, before = executor.run(steps, x), counter.madds + counter.pooling
        shape = counter.run(steps, shape)
        logits, cost = _exit(x, name, network.classes, network.spec.activation)
        outputs.append(logits)
        madds.append(counter.madds + counter.pooling - before + cost)
    before = counter.madds + counter.pooling
    outputs.append(executor.run(segments[-1], x))
    counter.run(segments[-1], shape)
    madds.append(counter.madds + counter.pooling - before)
    return keras.Model(inputs, outputs, name="early_exit"), np.array(madds, "int64")


def split_at_exits(network, exits):
    """Returns the steps of a network, split after the blocks of the exits.

    Args:
        network: `DynamicSlimmableNetwork` of the family of MobileNet.
        exits: Tuple of ascending ints, the numbers of the blocks that an exit follows.

    Raises:
        ValueError: If the network does not have a block.
    """
    steps = [step for section in network.sections for step in section]
    names = [step.layer.name if step.layer is not None else "" for step in steps]
    ends = []
    for number in exits:
        name = f"block_{number}_pointwise_norm"
        # An exit after the last block would be the classifier.
        if name not in names or f"block_{number + 1}_pointwise_norm" not in names:
            most = sum(name.endswith("_pointwise_norm") for name in names) - 1
            raise ValueError(
                f"--exits must be blocks from 1 to {most}. "
                f"Received: --exits={','.join(map(str, exits))}"
            )
        ends.append(names.index(name) + 1)
    return [steps[a:b] for a, b in zip([0, *ends], [*ends, len(steps)])]


def _exit(x, name, classes, activation):
    """Returns the logits of an exit and its multiply-adds."""
    layers, channels = keras.layers, _EXIT_GROWTH * x.shape[-1]
    options = {"use_bias": False, "padding": "same"}
    convolutions = (
        layers.DepthwiseConv2D(
            3,
            _EXIT_STRIDES,
            depthwise_initializer="he_normal",
            name=f"{name}_depthwise",
            **options,
        ),
        layers.Conv2D(
            channels, 1, kernel_initializer="he_normal", name=f"{name}_pointwise", **options
        ),
    )
    y, inputs = x, x.shape[-1]
    for convolution in convolutions:
        norm = f"{convolution.name}_norm"
        y = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=norm)(convolution(y))
        y = layers.Activation(activation, name=f"{norm}_activation")(y)
    height, width = y.shape[1:3]
    y = layers.GlobalAveragePooling2D(name=f"{name}_pool")(y)
    cost = height * width * (9 * inputs + inputs * channels + channels) + channels * classes
    return layers.Dense(classes, name=f"{name}_classifier")(y), cost


class EarlyExitTrainer(keras.Model):
    """Trains all exits together, on the sum of their cross entropies with the labels.

    Args:
        model: `keras.Model` of `build_early_exit`.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.built = True
        self._names = [*(name.removesuffix("_classifier") for name in model.output_names)]
        self._names[-1] = "last"
        names = [
            "loss",
            *(f"{name}_{what}" for name in self._names for what in ("loss", "accuracy")),
        ]
        self._trackers = {name: keras.metrics.Mean(name) for name in names}

    @property
    def metrics(self):
        return list(self._trackers.values())

    @property
    def optimized_variables(self):
        """The variables that the optimizer changes."""
        return self.model.trainable_variables

    def compile(self, optimizer, **kwargs):
        """Sets the optimizer. Gates, norms and biases do not decay, as in stage I.

        Args:
            optimizer: A `keras.Optimizer`.
            **kwargs: Keyword arguments of `keras.Model.compile`.
        """
        optimizer.exclude_from_weight_decay(
            var_list=[v for v in self.optimized_variables if not _decays(v)]
        )
        super().compile(optimizer=optimizer, jit_compile=False, **kwargs)

    def train_step(self, data):
        images, labels = data
        with tf.GradientTape() as tape:
            logits = self.model(images, training=True)
            losses = [label_cross_entropy(labels, x) for x in logits]
            loss = tf.add_n(losses)
        variables = [v.value for v in self.optimized_variables]
        gradients = tape.gradient(loss, variables)
        self.optimizer.apply_gradients(zip(gradients, self.optimized_variables))
        values = {"loss": loss}
        for name, each, x in zip(self._names, losses, logits):
            values[f"{name}_loss"] = each
            values[f"{name}_accuracy"] = tf.reduce_mean(tf.cast(is_right(labels, x), tf.float32))
        for name, value in values.items():
            self._trackers[name].update_state(value)
        logs = {name: tracker.result() for name, tracker in self._trackers.items()}
        return {**logs, "learning_rate": self.optimizer.learning_rate}


def _decays(variable):
    return variable.name not in ("gamma", "beta", "bias") and "_gate_" not in variable.path


def recalibrate_exits(model, batches, steps):
    """Computes the batch-norm statistics anew, as the mean over some batches, as stage I does.

    Args:
        model: `keras.Model` of `build_early_exit`.
        batches: Iterable of `(images, labels)`, preprocessed.
        steps: Int, the number of batches.
    """
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    momentum = {norm: norm.momentum for norm in norms}
    for index, (images, _) in enumerate(itertools.islice(batches, steps)):
        for norm in norms:
            norm.momentum = index / (index + 1)
        model(images, training=True)
    for norm in norms:
        norm.momentum = momentum[norm]


def collect_exits(model, batches, madds):
    """Runs all images to all exits.

    Args:
        model: `keras.Model` of `build_early_exit`.
        batches: Iterable of `(images, labels)`, preprocessed.
        madds: Int array, the multiply-adds that each exit adds.

    Returns:
        `StepResults` whose widths are the positions of the exits.
    """
    confidence, correct = [], []
    for images, labels in batches:
        logits = model(images, training=False)
        confidence.append(np.stack([confidence_of(x) for x in logits], 1))
        correct.append(np.stack([likeliest(x) == labels.numpy() for x in logits], 1))
    widths = tuple(range(len(madds)))
    return StepResults(widths, madds, 0, np.concatenate(confidence), np.concatenate(correct))


def exit_rows(results, exits):
    """Returns one row for each exit if all images stopped there.

    Args:
        results: `StepResults` of `collect_exits`.
        exits: Tuple of ints, the blocks of the early exits.

    Returns:
        List of dicts with "path", "madds" and "top1".
    """
    names = [*(f"exit_{number}" for number in exits), "last"]
    totals, top1 = np.cumsum(results.madds), results.correct.mean(axis=0)
    return [
        {"path": name, "madds": int(madds), "top1": float(value)}
        for name, madds, value in zip(names, totals, top1)
    ]


def load_early_exit(run):
    """Returns a trained network with early exits.

    Args:
        run: Path of the work directory of early_exit.py.

    Returns:
        `(model, madds)`, as `build_early_exit` returns them.
    """
    run = pathlib.Path(run)
    rows = json.loads((run / "tables" / "paths.json").read_text(encoding="utf-8"))
    totals = np.array([row["madds"] for row in rows], "int64")
    return keras.models.load_model(run / "model.keras", compile=False), np.diff(totals, prepend=0)
