"""Stage I: trains the supernet by In-place Ensemble Bootstrapping (Section 3.3)."""

import functools
import warnings

import keras
import tensorflow as tf

from keras_dsnet.layers.slicing import SliceTape, add_slices, whole_gradient
from keras_dsnet.models.path import Path
from keras_dsnet.models.topology import walk
from keras_dsnet.training.losses import is_right, label_cross_entropy, soft_cross_entropy
from keras_dsnet.training.moving_average import MovingAverage
from keras_dsnet.training.network_trainer import NetworkTrainer
from keras_dsnet.training.optimizers import L2SGD
from keras_dsnet.utils.argument_checks import check_bool, check_int, check_number

TARGETS = ("in_place", "ema", "ensemble")


@keras.saving.register_keras_serializable(package="keras_dsnet")
class SupernetTrainer(NetworkTrainer):
    """In-place Ensemble Bootstrapping (Sec. 3.1 of the paper, Eqs. 3-5).

    Each step trains the widest sub-network on the labels, `num_random` random ones on the soft
    labels of the teacher's widest, and the slimmest on the mean of the teacher's widest and random
    ones (sandwich rule). The teacher is the exponential moving average of the model, batch-norm
    statistics included. All widths share one traced step.

    The front of the network, before the first gate, does the same for all these sub-networks: it
    runs once per step, with the sum of their gradients.

    `fit` and `evaluate` take images, float32 `[batch, height, width, 3]`, and labels: class numbers
    `[batch]` or `[batch, 1]` of any type, or probabilities `[batch, classes]`. Validation measures
    the label path and the slimmest on the labels, as "widest_loss" and "widest_accuracy" (named by
    `label_path`), "slimmest_label_loss" and "slimmest_accuracy"; "loss" is the sum of both losses.

    A sample weight, or the weight of an image's class, multiplies every loss of that image, those
    of distillation too; a batch's loss is the weighted sum over the number of images, as in Keras.
    Accuracies count every image alike, as Keras's `metrics` do.

    Args:
        model: a `DynamicSlimmableNetwork`.
        target: "ensemble" (Eq. 4); "ema": the teacher's widest alone; "in_place": the widest of the
            same step, without a teacher, as in US-Net (Table 5).
        num_random: int, n of Eq. 4.
        temperature: float, of the distillation (Table 10).
        ema_momentum: float, alpha of Eq. 3.
        ema_warmup: bool: momentum `min(ema_momentum, (1 + t) / (10 + t))` at step t, since a fresh
            teacher knows nothing.
        label_path: what is trained on labels: "widest", or "largest" (with the wide front).
        sandwich: bool: train random sub-networks and the slimmest too. False: `label_path` alone,
            which may be any path then, as a network of that width is trained.
        label_smoothing: float.
        decay_norms_and_biases: bool: weight decay on norms and biases too; never on gates.
        seed: int, of the random widths, which are a function of it and the step.
        **kwargs: of `keras.Model`; `dtype` is the model's by default.

    Raises:
        ValueError: on an argument that is none of the above, or a path that the model does not
            have.

    Example:

    >>> trainer = SupernetTrainer(model)
    >>> trainer.compile(L2SGD(0.08))
    >>> trainer.fit(dataset, epochs=150)
    >>> trainer.load_teacher()
    """

    def __init__(
        self,
        model,
        target="ensemble",
        num_random=2,
        temperature=1.0,
        ema_momentum=0.997,
        ema_warmup=True,
        label_path="widest",
        sandwich=True,
        label_smoothing=0.0,
        decay_norms_and_biases=False,
        seed=0,
        **kwargs,
    ):
        super().__init__(model, **kwargs)
        is_named = isinstance(label_path, str)
        _check(isinstance(target, str) and target in TARGETS, "target", target, f"one of {TARGETS}")
        self.target = target
        self.sandwich = check_bool("sandwich", sandwich)
        num_random = check_int("num_random", num_random, 0)
        self.num_random = num_random if sandwich else 0
        self.temperature = check_number("temperature", temperature, "positive", lambda t: t > 0)
        in_range = "in [0, 1)", lambda number: 0 <= number < 1
        self.ema_momentum = check_number("ema_momentum", ema_momentum, *in_range)
        self.label_smoothing = check_number("label_smoothing", label_smoothing, *in_range)
        self.ema_warmup = check_bool("ema_warmup", ema_warmup)
        self.decay_norms_and_biases = check_bool("decay_norms_and_biases", decay_norms_and_biases)
        self.seed = check_int("seed", seed, -(2**31))
        is_end = is_named and label_path in ("widest", "largest")
        _check(not sandwich or is_end, "label_path", label_path, "widest or largest")
        gates = model.resolve_path(label_path).gates
        # In plain numbers, which a saved configuration can hold.
        is_uniform = model.num_gates == 1 and not isinstance(label_path, (tuple, list))
        self.label_path = label_path if is_named else gates[0] if is_uniform else gates
        self._label_name = label_path if is_named else f"width_{self.label_path}"
        taught = model.variables if target != "in_place" else []
        self._average = MovingAverage(taught, self.ema_momentum, self.ema_warmup)
        # So that Keras finds and saves them: it does not look into a plain object.
        self.teacher_variables = self._average.averages
        names = ["loss", f"{self._label_name}_loss"]
        names += ["slimmest_loss"] * sandwich + ["random_loss"] * bool(self.num_random)
        names += [f"{self._label_name}_accuracy"]
        names += ["slimmest_label_loss", "slimmest_accuracy"] * sandwich
        self._trackers = {name: keras.metrics.Mean(name) for name in names}

    @property
    def metrics(self):
        return list(self._trackers.values())

    def fit(self, *args, **kwargs):
        """Trains; as `NetworkTrainer.fit`, with a warning where gates are trained already.

        Args:
            *args: of `keras.Model.fit`.
            **kwargs: of `keras.Model.fit`.
        """
        if self.model.gates_trained:
            warnings.warn(
                "The gates of this network were trained on the supernet as it was, which this "
                "training changes: train them again afterwards with "
                "keras_dsnet.training.GateTrainer, or set `model.gates_trained = False`.",
                stacklevel=2,
            )
        return super().fit(*args, **kwargs)

    def compile(self, optimizer=None, **kwargs):
        """Sets the optimizer; the losses are those of Eqs. 5.

        Args:
            optimizer: an optimizer that is not built yet; None: `L2SGD()`, the paper's. Weight
                decay, where it has one, leaves out the gates, and the norms and biases unless
                `decay_norms_and_biases`.
            **kwargs: of `keras.Model.compile`.

        Raises:
            ValueError: the optimizer is built: it has trained something before.
        """
        super().compile(L2SGD() if optimizer is None else optimizer, **kwargs)

    def _undecayed_variables(self):
        return undecayed_variables(self.model.sections, self.decay_norms_and_biases)

    @property
    def optimized_variables(self):
        """What stage I trains: all but the slimming heads."""
        return stage_one_variables(self.model.sections)

    def draw_widths(self):
        """Draws the random paths of a step.

        Returns:
            int32 `[num_random, num_gates]`, the same on every replica and after a resume. Of one
            gate interior widths, since the slimmest and the widest are trained at every step; of
            several gates every width, since their paths mix the ends.
        """
        widths = self.model.num_widths
        interior = self.model.num_gates == 1 and widths > 2
        low, high = (1, widths - 1) if interior else (0, widths)
        step = tf.cast(self.optimizer.iterations, tf.int32)
        shape = (self.num_random, self.model.num_gates)
        return tf.random.stateless_uniform(shape, [self.seed, step], low, high, tf.int32)

    def train_step(self, data):
        images, labels, weights = self.unpack(data, "a training batch", training=True)
        paths = self._paths(self.draw_widths())
        losses, logits, gradients = self._gradients(images, labels, paths, weights)
        self.optimizer.apply_gradients(zip(gradients, self.optimized_variables))
        replicas = self.distribute_strategy.num_replicas_in_sync
        self._average.update(self.optimizer.iterations, replicas)
        logs = self._report(self._training_values(losses, logits, labels), images)
        return {**logs, "learning_rate": self.optimizer.learning_rate}

    def test_step(self, data):
        """Measures the label path and the slimmest on the labels; no teacher, no random paths."""
        images, labels, weights = self.unpack(data, "an evaluation batch")
        paths = [self.label_path, "slimmest"] if self.sandwich else [self.label_path]
        # In training the slimmest path's loss is that of the teacher's soft labels.
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

    def _paths(self, widths):
        if self._is_sorted:
            # Their order matters to nothing but the speed of adding up gradients.
            widths = tf.sort(widths, axis=0, direction="DESCENDING")
        label = self.model.resolve_path(self.label_path)
        if not self.sandwich:
            return [label]
        draws = [Path((0, *tf.unstack(w)), (0, *tf.unstack(w))) for w in tf.unstack(widths)]
        return [label, *draws, self.model.resolve_path("slimmest")]

    def _gradients(self, images, labels, paths, weights=None):
        """Returns the losses, the first net's logits, and the gradients of their sum."""
        teacher = self.teacher_probabilities(images, paths[:-1])
        gradients = SubnetworkGradients(self.model, images, paths, self._scale, self._is_sorted)
        losses = [None] * len(paths)
        for index in self._order(paths):
            loss = functools.partial(self._loss, index, labels, teacher, weights)
            losses[index], logits = gradients.add(paths[index], loss)
            if index == 0:
                label_logits = logits
            if index == 0 and self.target == "in_place":
                teacher = [tf.nn.softmax(tf.stop_gradient(logits) / self.temperature)]
        return losses, label_logits, gradients.result(self.optimized_variables)

    @property
    def _is_sorted(self):
        """Whether the sub-networks of a step ascend in `_order`: the widths of one gate do."""
        return self.model.num_gates == 1 and self.target != "in_place"

    def _order(self, paths):
        """The narrow sub-networks first, whose gradients are small, unless the widest teaches."""
        order = range(len(paths))
        return order if self.target == "in_place" else reversed(order)

    def _scale(self, loss):
        return self.optimizer.scale_loss(loss / self.distribute_strategy.num_replicas_in_sync)

    def _loss(self, index, labels, teacher, weights, logits):
        """Eqs. 5: the first path learns from labels, the last from the mean of the teachers."""
        if index == 0:
            return label_cross_entropy(labels, logits, self.label_smoothing, weights)
        slimmest = index == self.num_random + 1
        soft = tf.add_n(teacher) / len(teacher) if slimmest else teacher[0]
        return soft_cross_entropy(soft, logits, self.temperature, weights)

    def teacher_probabilities(self, images, paths):
        """Returns the teacher's probabilities of the given paths, the label path's first.

        Args:
            images: `[batch, height, width, 3]`.
            paths: list of `Path`.

        Returns:
            List of `[batch, classes]`: of all paths, or of target "ema" the first alone; None
            where no teacher is asked.
        """
        if self.target == "in_place" or not self.sandwich:
            return None
        paths = paths if self.target == "ensemble" else paths[:1]
        with self._average.scope():
            logits = self._logits(images, paths)
        return [tf.stop_gradient(tf.nn.softmax(path / self.temperature)) for path in logits]

    def _logits(self, images, paths):
        """Returns the logits of paths at inference, float32; each front runs once."""
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

    def _report(self, values, images):
        for name, value in values.items():
            # Image by image, since the last batch may be smaller.
            value = tf.broadcast_to(tf.cast(value, tf.float32), tf.shape(images)[:1])
            self._trackers[name].update_state(value)
        return {name: self._trackers[name].result() for name in values}

    def load_teacher(self):
        """Gives the model the teacher's variables: the average, which is the better network.

        Of target "in_place", which has no teacher, the model stays as it is.
        """
        self._average.load()

    def saved_weights(self, teacher=True):
        return self._average.loaded() if teacher else super().saved_weights(teacher)

    def get_config(self):
        return {
            **super().get_config(),
            "target": self.target,
            "num_random": self.num_random,
            "temperature": self.temperature,
            "ema_momentum": self.ema_momentum,
            "ema_warmup": self.ema_warmup,
            "label_path": self.label_path,
            "sandwich": self.sandwich,
            "label_smoothing": self.label_smoothing,
            "decay_norms_and_biases": self.decay_norms_and_biases,
            "seed": self.seed,
        }


def _check(holds, name, value, right):
    if not holds:
        raise ValueError(f"`{name}` must be {right}. Received: {name}={value!r}")


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


def stage_one_variables(sections):
    """Returns the trainable variables of sections, slimming heads left out.

    Args:
        sections: tuples of `Step`.

    Returns:
        List of `keras.Variable`, in the order of the network.
    """
    layers = [step.layer for steps in sections for step in walk(steps) if step.layer is not None]
    slimming = {id(v) for layer in layers for v in getattr(layer, "slimming_variables", [])}
    return [v for layer in layers for v in layer.trainable_variables if id(v) not in slimming]


def undecayed_variables(sections, decay_norms_and_biases=False):
    """Returns the variables that have no weight decay: gates, and by default norms and biases.

    Args:
        sections: tuples of `Step`.
        decay_norms_and_biases: bool: leave out the gates alone.

    Returns:
        List of `keras.Variable`.
    """
    undecayed = []
    for step in (step for steps in sections for step in walk(steps)):
        if step.kind == "gate":
            undecayed += step.layer.variables
        elif step.layer is not None and not decay_norms_and_biases:
            variables = step.layer.trainable_variables
            undecayed += [v for v in variables if v.name in ("gamma", "beta", "bias")]
    return undecayed
