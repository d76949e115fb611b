"""Stage I: trains the supernet by In-place Ensemble Bootstrapping (Section 3.1)."""

import collections
import contextlib
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_dsnet.layers import DoubleHeadedGate
from keras_dsnet.layers.slicing import SliceTape, add_slices, whole_gradient
from keras_dsnet.models.path import Path
from keras_dsnet.training.losses import is_right, label_cross_entropy, soft_cross_entropy
from keras_dsnet.training.moving_average import MovingAverage
from keras_dsnet.training.network_trainer import NetworkTrainer
from keras_dsnet.training.optimizers import L2SGD
from keras_dsnet.utils.argument_checks import check_bool, check_int, check_number

TARGETS = ("in_place", "ema", "ensemble")


@keras.saving.register_keras_serializable(package="keras_dsnet")
class SupernetTrainer(NetworkTrainer):
    """Trains a supernet by In-place Ensemble Bootstrapping (Sec. 3.1 of the paper, Eqs. 3-5).

    Each step follows the sandwich rule. The widest sub-network learns from the labels, `num_random`
    random sub-networks learn from the probabilities of the teacher's widest sub-network, and the
    slimmest learns from the mean of the teacher's widest and random sub-networks. The teacher is
    the exponential moving average of the model, its batch-norm statistics included. One traced step
    serves all widths.

    The layers before the first gate do the same for all these sub-networks. They run once per step,
    and receive the sum of the sub-networks' gradients.

    `fit` and `evaluate` take images, float32 `[batch, height, width, 3]`, and labels: class numbers
    `[batch]` or `[batch, 1]` of any type, or probabilities `[batch, classes]`. Validation measures
    the label path and the slimmest path on the labels. Its metrics are "widest_loss" and
    "widest_accuracy" (named after `label_path`), "slimmest_label_loss" and "slimmest_accuracy", and
    "loss" is the sum of both losses.

    A sample weight, or the weight of an image's class, multiplies every loss of that image,
    including the losses of distillation. The loss of a batch is the weighted sum divided by the
    number of images, as in Keras. Accuracies count every image once, as Keras's `metrics` do.

    Args:
        model: `DynamicSlimmableNetwork` with a classifier.
        target: String, the teacher of the random and slimmest sub-networks. `"ensemble"` is the
            ensemble of Eq. 4; `"ema"` uses only the teacher's widest sub-network; `"in_place"` uses
            the widest sub-network of the same step and no teacher, as US-Net does (Table 5).
            Defaults to `"ensemble"`.
        num_random: Int, number of random sub-networks, n of Eq. 4. Defaults to `2`.
        temperature: Float, temperature of the distillation (Table 10). Defaults to `1.0`.
        scale_distillation: Boolean, whether the losses of the distillation are multiplied by the
            square of the temperature, which keeps the scale of their gradients. Defaults to `True`.
        ema_momentum: Float in [0, 1), alpha of Eq. 3. Defaults to `0.997`.
        ema_warmup: Boolean, whether the momentum at step t is
            `min(ema_momentum, (1 + t) / (10 + t))`, because the averages of the first steps are
            close to the initial weights. Defaults to `True`.
        label_path: The path that is trained on the labels: `"widest"`, or `"largest"` (the widest
            path with the wide front). With `sandwich=False` it can be any path of the model.
            Defaults to `"widest"`.
        sandwich: Boolean, whether to train random sub-networks and the slimmest too. With `False`
            only `label_path` is trained, as a network of that width would be. Defaults to `True`.
        label_smoothing: Float in [0, 1), smoothing of the labels. Defaults to `0.0`.
        decay_norms_and_biases: Boolean, whether weight decay also applies to the parameters of
            normalization layers and to biases. It never applies to gates. Defaults to `False`.
        seed: Int, seed of the random widths. The widths are a function of the seed and of the step.
            Defaults to `0`.
        **kwargs: Keyword arguments of `keras.Model`. `dtype` defaults to the dtype policy of
            `model`.

    Raises:
        ValueError: If an argument has another value than those above, or `model` does not have
            the path.

    Example:

    ```python
    import numpy as np
    from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage
    from keras_dsnet.training import L2SGD, SupernetTrainer

    stages = MobileNetStage(1, 2, (8, 12)), MobileNetStage(1, 2, (8, 12, 16), gated=True)
    spec = MobileNetSpec(stem=(8, 12), stages=stages)
    model = DynamicSlimmableNetwork(spec, input_shape=(32, 32, 3), classes=10)
    images, labels = np.random.normal(size=(16, 32, 32, 3)), np.arange(16) % 10

    trainer = SupernetTrainer(model, num_random=1)
    trainer.compile(L2SGD(0.08))
    trainer.fit(images.astype("float32"), labels, epochs=1)
    trainer.load_teacher()
    ```
    """

    def __init__(
        self,
        model: keras.Model,
        target: str = "ensemble",
        num_random: int = 2,
        temperature: float = 1.0,
        ema_momentum: float = 0.997,
        ema_warmup: bool = True,
        label_path: str | int | Sequence[int] = "widest",
        sandwich: bool = True,
        label_smoothing: float = 0.0,
        decay_norms_and_biases: bool = False,
        seed: int = 0,
        scale_distillation: bool = True,
        **kwargs: Any,
    ):
        super().__init__(model, **kwargs)
        is_named = isinstance(label_path, str)
        _check(isinstance(target, str) and target in TARGETS, "target", target, f"one of {TARGETS}")
        self.target = target
        self.sandwich = check_bool("sandwich", sandwich)
        num_random = check_int("num_random", num_random, 0)
        self.num_random = num_random if sandwich else 0
        self.temperature = check_number("temperature", temperature, "positive", lambda t: t > 0)
        self.scale_distillation = check_bool("scale_distillation", scale_distillation)
        in_range = "in [0, 1)", lambda number: 0 <= number < 1
        self.ema_momentum = check_number("ema_momentum", ema_momentum, *in_range)
        self.label_smoothing = check_number("label_smoothing", label_smoothing, *in_range)
        self.ema_warmup = check_bool("ema_warmup", ema_warmup)
        self.decay_norms_and_biases = check_bool("decay_norms_and_biases", decay_norms_and_biases)
        self.seed = check_int("seed", seed, -(2**31))
        is_end = is_named and label_path in ("widest", "largest")
        _check(not sandwich or is_end, "label_path", label_path, "widest or largest")
        gates = model.resolve_path(label_path).gates
        # Plain ints, which a saved configuration can hold.
        is_uniform = model.num_gates == 1 and not isinstance(label_path, (tuple, list))
        self.label_path = label_path if is_named else gates[0] if is_uniform else gates
        self._label_name = label_path if is_named else f"width_{self.label_path}"
        averaged = model.variables if target != "in_place" else []
        self._average = MovingAverage(averaged, self.ema_momentum, self.ema_warmup)
        # An attribute of the trainer, because Keras does not track variables in plain objects.
        self.teacher_variables = self._average.averages
        names = ["loss", f"{self._label_name}_loss"]
        names += ["slimmest_loss"] * sandwich + ["random_loss"] * bool(self.num_random)
        names += [f"{self._label_name}_accuracy"]
        tested = ["loss", f"{self._label_name}_loss", f"{self._label_name}_accuracy"]
        tested += ["slimmest_label_loss", "slimmest_accuracy"] * sandwich
        self._set_metrics(names, tested)
        self._has_teacher = False

    def _set_metrics(self, trained, tested):
        """Makes the metrics of a training step and of an evaluation, from lists of their names."""
        self._trained, self._tested = trained, tested
        names = dict.fromkeys([*trained, *tested])
        self._trackers = {name: keras.metrics.Mean(name) for name in names}

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Losses and accuracies: those of training, or in and after an evaluation its own."""
        # Where they are not those that a step returns, Keras takes the mean over the replicas,
        # whose shares of the last batch may differ.
        names = self._tested if self._is_evaluating else self._trained
        return [self._trackers[name] for name in names]

    @property
    def optimized_variables(self) -> list[keras.Variable]:
        """The variables that stage I trains: all trainable ones except the slimming heads."""
        layers = self.model.supernet_layers
        slimming = {id(v) for layer in layers for v in getattr(layer, "slimming_variables", [])}
        return [v for layer in layers for v in layer.trainable_variables if id(v) not in slimming]

    def _undecayed_variables(self):
        undecayed = []
        for layer in self.model.supernet_layers:
            if isinstance(layer, DoubleHeadedGate):
                undecayed += layer.variables
            elif not self.decay_norms_and_biases:
                variables = layer.trainable_variables
                undecayed += [v for v in variables if v.name in ("gamma", "beta", "bias")]
        return undecayed

    def compile(self, optimizer: keras.Optimizer | str | None = None, **kwargs: Any) -> None:
        """Sets the optimizer. The losses are those of Eqs. 5.

        Args:
            optimizer: Keras optimizer that is not built yet. Its weight decay, if it has one, does
                not apply to gates, and applies to norms and biases only with
                `decay_norms_and_biases=True`. Defaults to the paper's optimizer, `L2SGD()`.
            **kwargs: Keyword arguments of `keras.Model.compile`.

        Raises:
            ValueError: If the optimizer is built, because it has then trained something else, or is
                Adafactor.
        """
        super().compile(L2SGD() if optimizer is None else optimizer, **kwargs)
        inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        if isinstance(inner, keras.optimizers.Adafactor):
            raise ValueError(
                "`optimizer` must not be Adafactor, which divides by the mean of squared gradients "
                "of a row: that of channels that no path of a step has used is 0. "
                f"Received: optimizer={inner.name!r}"
            )

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains the supernet, as `NetworkTrainer.fit`. Warns if the gates are already trained.

        Args:
            *args: Arguments of `keras.Model.fit`.
            **kwargs: Keyword arguments of `keras.Model.fit`.

        Returns:
            `keras.callbacks.History`.
        """
        if self.model.gates_trained:
            warnings.warn(
                "The gates of this network were trained on its present supernet, which this "
                "training changes: train them again afterwards with "
                "keras_dsnet.training.GateTrainer, or set `model.gates_trained = False`.",
                stacklevel=2,
            )
        return super().fit(*args, **kwargs)

    def _before_training(self):
        super()._before_training()
        if self.compiled and not self._has_teacher:
            if not int(tf.convert_to_tensor(self.optimizer.iterations)):
                # Weights may have been loaded since the trainer was made.
                self._average.reset()
            self._has_teacher = True

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(store)
        # The teacher of the file goes on, also with a new optimizer, which counts from 0.
        self._has_teacher = True

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Runs one step of stage I.

        The sub-networks use the first channels of the shared weights (Eq. 2). They run forward and
        backward on the same batch, taught by the labels and by the ensemble (Eqs. 4 and 5). The sum
        of their gradients updates the weights, and the teacher follows the weights (Eq. 3).

        Args:
            data: `(images, labels)` or `(images, labels, sample_weight)`.

        Returns:
            Dict from metric names to scalar tensors.
        """
        images, labels, weights = self.unpack(data, "a training batch", training=True)
        subnetworks = self._subnetworks(self.draw_widths())
        losses, outputs, gradients = self._gradients(images, labels, subnetworks, weights)
        # The step moves a schedule on.
        rate = tf.identity(self.optimizer.learning_rate)
        self.apply_gradients(gradients)
        replicas = self.distribute_strategy.num_replicas_in_sync
        self._average.update(self.optimizer.iterations, replicas)
        logs = self._report(self._training_values(losses, outputs, labels), images)
        return {**logs, "learning_rate": rate}

    def draw_widths(self) -> tf.Tensor:
        """Draws the random paths of a step.

        With one gate the widths are interior, because every step trains the slimmest and the
        widest. With several gates all widths are drawn, because a path can combine both ends.

        Returns:
            int32 tensor `[num_random, num_gates]`, the same on every replica and after a resume.
        """
        widths = self.model.num_widths
        interior = self.model.num_gates == 1 and widths > 2
        low, high = (1, widths - 1) if interior else (0, widths)
        step = tf.cast(self.optimizer.iterations, tf.int32)
        shape = (self.num_random, self.model.num_gates)
        return tf.random.stateless_uniform(shape, [self.seed, step], low, high, tf.int32)

    def _subnetworks(self, widths):
        """Returns the sub-networks of a step, and the order in which they run.

        The order is decided only here. Narrow sub-networks run first: their gradients are small
        tensors, so most of the sums are small too. With one gate the drawn widths are sorted, which
        makes the sizes ascend, and `add_slices` need not compare them. The exception is the target
        "in_place", whose label path teaches the others and must run first.

        Args:
            widths: int32 `[num_random, num_gates]`.
        """
        label = self.model.resolve_path(self.label_path)
        if not self.sandwich:
            return _Subnetworks([label], order=[0], ascending=True)
        narrow_first = self.target != "in_place"
        ascending = narrow_first and self.model.num_gates == 1
        if ascending:
            widths = tf.sort(widths, axis=0, direction="DESCENDING")
        draws = [Path((0, *tf.unstack(w)), (0, *tf.unstack(w))) for w in tf.unstack(widths)]
        paths = [label, *draws, self.model.resolve_path("slimmest")]
        order = range(len(paths))
        return _Subnetworks(paths, list(reversed(order) if narrow_first else order), ascending)

    def _gradients(self, images, labels, subnetworks, weights=None):
        """Runs the sub-networks forward and backward, and sums the gradients of Eqs. 5.

        Returns:
            `(losses, logits, gradients)`: the losses of Eqs. 5 in the order of `paths`, the logits
            of the label path, and the gradients of the sum of the losses, one for each of
            `optimized_variables`.
        """
        paths = subnetworks.paths
        teacher = self.teacher_probabilities(images, paths[:-1])
        losses, label_logits = [None] * len(paths), None

        def loss_of(index, logits):
            nonlocal teacher, label_logits
            logits = tf.cast(logits, tf.float32)
            losses[index] = self._loss(index, logits, labels, teacher, weights)
            if index == 0:
                label_logits = logits
                if self.target == "in_place":
                    teacher = [tf.nn.softmax(tf.stop_gradient(logits) / self.temperature)]
            return losses[index] / self.distribute_strategy.num_replicas_in_sync

        gradients = self._summed_gradients(images, subnetworks, loss_of)
        return losses, label_logits, gradients

    def _summed_gradients(self, images, subnetworks, loss_of):
        """Runs the sub-networks forward and backward, and sums their gradients.

        TensorFlow may run several sub-networks at a time. Control dependencies that run them one
        after the other would save 7 to 10 % of the memory of a step on two cores, and cost 3 to
        11 % of its time.

        Args:
            images: Tensor `[batch, height, width, 3]`.
            subnetworks: `_Subnetworks`.
            loss_of: Function of the place of a sub-network in `paths` and of its outputs that
                returns this replica's part of its loss.

        Returns:
            List of gradients, one for each of `optimized_variables`.
        """
        paths = subnetworks.paths
        fronts = self._run_fronts(images, paths)
        front_gradients = dict.fromkeys(fronts)
        total, reads = {}, {}
        for index in subnetworks.order:
            path, front = paths[index], paths[index].widths[0]
            # The gradient of a sub-network ends at these features; the front gets it below.
            features = tf.nest.map_structure(tf.identity, fronts[front][1])
            flat = tf.nest.flatten(features)
            with SliceTape(reads) as tape:
                for each in flat:
                    tape.watch(each)
                outputs = self.model.run_sections(features, path, first=1, training=True)
                scaled = self.optimizer.scale_loss(loss_of(index, outputs))
            gradients, slices = tape.gradient(scaled, flat)
            add_slices(total, slices, ascending=subnetworks.ascending)
            front_gradients[front] = _sum(front_gradients[front], gradients)
        for front, (tape, features) in fronts.items():
            used = zip(tf.nest.flatten(features), front_gradients[front])
            targets, gradients = zip(*[pair for pair in used if pair[1] is not None])
            add_slices(total, tape.gradient([*targets], (), [*gradients])[1])
        return [whole_gradient(total, variable) for variable in self.optimized_variables]

    def teacher_probabilities(
        self, images: tf.Tensor, paths: Sequence[Path]
    ) -> list[tf.Tensor] | None:
        """Runs the teacher (Eq. 4).

        Args:
            images: Tensor `[batch, height, width, 3]`.
            paths: List of `Path`, the label path and the random paths.

        Returns:
            List of the probabilities of the sub-networks that teach, `[batch, classes]`: of all
            `paths` with the target `"ensemble"`, of the first one with `"ema"`. `None` if there is
            no teacher to run.
        """
        if self.target == "in_place" or not self.sandwich:
            return None
        paths = paths if self.target == "ensemble" else paths[:1]
        with self._average.scope():
            logits = self._logits(images, paths)
        return [tf.stop_gradient(tf.nn.softmax(path / self.temperature)) for path in logits]

    def _run_fronts(self, images, paths):
        """Runs the layers before the first gate once for all paths that share them.

        Their batch-norm statistics move as often as there are such paths.

        Returns:
            Dict from the front's width to its `(tape, features)`.
        """
        counts = collections.Counter(path.widths[0] for path in paths)
        fronts = {}
        for path in paths:
            front = path.widths[0]
            if front not in fronts:
                with SliceTape() as tape:
                    features = self.model.run_sections(
                        images, path, last=0, training=True, repeats=counts[front]
                    )
                fronts[front] = tape, features
        return fronts

    def _loss(self, index, logits, labels, teacher, weights):
        """Returns one loss of Eqs. 5: `index` is the place of the sub-network in `paths`."""
        if index == 0:
            return label_cross_entropy(labels, logits, self.label_smoothing, weights)
        is_slimmest = index == self.num_random + 1
        probabilities = tf.add_n(teacher) / len(teacher) if is_slimmest else teacher[0]
        scaled = self.scale_distillation
        return soft_cross_entropy(probabilities, logits, self.temperature, weights, scaled)

    def _logits(self, images, paths):
        """Returns the float32 logits of paths at inference. Each front runs once."""
        logits, fronts = [], {}
        for path in paths:
            front = path.widths[0]
            if front not in fronts:
                fronts[front] = self.model.run_sections(images, path, last=0)
            path_logits = self.model.run_sections(fronts[front], path, first=1)
            logits.append(tf.cast(path_logits, tf.float32))
        return logits

    def _training_values(self, losses, logits, labels):
        values = {"loss": tf.add_n(losses), f"{self._label_name}_loss": losses[0]}
        if self.sandwich:
            values["slimmest_loss"] = losses[-1]
        if self.num_random:
            values["random_loss"] = tf.add_n(losses[1:-1]) / self.num_random
        values[f"{self._label_name}_accuracy"] = is_right(labels, logits)
        return values

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Measures the label path and the slimmest path on the labels, without the teacher.

        Args:
            data: `(images, labels)` or `(images, labels, sample_weight)`.

        Returns:
            Dict from metric names to scalar tensors.
        """
        images, labels, weights = self.unpack(data, "an evaluation batch")
        paths = [self.label_path, "slimmest"] if self.sandwich else [self.label_path]
        # In training "slimmest_loss" compares with the teacher; this is another loss.
        names = [f"{self._label_name}_loss", "slimmest_label_loss"]
        accuracies = [f"{self._label_name}_accuracy", "slimmest_accuracy"]
        logits = self._logits(images, [self.model.resolve_path(path) for path in paths])
        values = {"loss": 0.0}
        for loss_name, accuracy_name, path_logits in zip(names, accuracies, logits):
            loss = label_cross_entropy(labels, path_logits, self.label_smoothing, weights)
            values[loss_name] = loss
            values[accuracy_name] = is_right(labels, path_logits)
            values["loss"] += loss
        return self._report(values, images)

    def _report(self, values, images):
        for name, value in values.items():
            # One value per image, because the last batch can be smaller.
            value = tf.broadcast_to(tf.cast(value, tf.float32), tf.shape(images)[:1])
            self._trackers[name].update_state(value)
        return {name: self._trackers[name].result() for name in values}

    def load_teacher(self) -> None:
        """Assigns the teacher's variables, the better network, to the model.

        The target `"in_place"` has no teacher, and the model stays unchanged.
        """
        self._average.load()

    def saved_weights(self, teacher: bool = True) -> contextlib.AbstractContextManager:
        return self._average.loaded() if teacher else super().saved_weights(teacher)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "target": self.target,
            "num_random": self.num_random,
            "temperature": self.temperature,
            "scale_distillation": self.scale_distillation,
            "ema_momentum": self.ema_momentum,
            "ema_warmup": self.ema_warmup,
            "label_path": self.label_path,
            "sandwich": self.sandwich,
            "label_smoothing": self.label_smoothing,
            "decay_norms_and_biases": self.decay_norms_and_biases,
            "seed": self.seed,
        }


class _Subnetworks(NamedTuple):
    """The sub-networks of a step.

    Args:
        paths: List of `Path`: the label path, the random paths and the slimmest path.
        order: List of ints, the indices into `paths` in the order in which they run.
        ascending: Boolean, whether no sub-network runs after a wider one.
    """

    paths: list
    order: list
    ascending: bool


def _sum(total, gradients):
    """Adds gradients to their sum so far. None is the gradient of what a path does not use."""
    if total is None:
        return gradients
    pairs = zip(total, gradients)
    return [b if a is None else a if b is None else a + b for a, b in pairs]


def _check(holds, name, value, right):
    if not holds:
        raise ValueError(f"`{name}` must be {right}. Received: {name}={value!r}")
