"""Stage II: trains the slimming heads by Sandwich Gate Sparsification (Section 3.2)."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_dsnet.models.costs import section_costs
from keras_dsnet.models.executors import MaskedExecutor, SlicedExecutor
from keras_dsnet.models.path import check_routes
from keras_dsnet.training.losses import (
    gate_cross_entropy,
    is_right,
    label_cross_entropies,
    weighted_mean,
)
from keras_dsnet.training.network_trainer import NetworkTrainer
from keras_dsnet.utils.argument_checks import check_bool, check_int, check_number

STRATEGIES = ("try_best", "give_up")
ESTIMATORS = ("straight_through", "exact")


@keras.saving.register_keras_serializable(package="keras_dsnet")
class GateTrainer(NetworkTrainer):
    """Trains gates by Sandwich Gate Sparsification (Sec. 3.2 of the paper, Eqs. 10-12).

    The supernet is frozen. Only the slimming heads learn, from three losses: the classification
    loss through the straight-through Gumbel-softmax and channel masks, the complexity penalty
    (Eq. 11), and the SGS loss (Eq. 10). The SGS target of an image that the slimmest route
    classifies correctly, an easy image, is the slimmest route. The target of all others is the
    widest route.

    After the first step the model's `gates_trained` is `True`, also if `fit` is interrupted.

    `fit` and `evaluate` take images, float32 `[batch, height, width, 3]`, and labels: class numbers
    `[batch]` or `[batch, 1]` of any type, or probabilities `[batch, classes]`. A sample weight, or
    the weight of an image's class, multiplies all three losses of that image. The loss of a batch
    is the weighted sum divided by the number of images, as in Keras. Accuracies, MAdds and shares
    count every image once.

    Args:
        model: `DynamicSlimmableNetwork` with a classifier and a trained supernet.
        routes: Tuple of ints, candidate widths of every gate in ascending order. They become the
            routes of the model. Defaults to the model's routes.
        strategy: String, the target of images that the widest route also gets wrong (Table 6):
            the widest route with `"try_best"`, the slimmest with `"give_up"`. Defaults to
            `"try_best"`.
        loss_weights: Tuple of three floats of 0 or more, the lambdas of Eq. 12 for classification,
            complexity and SGS. Defaults to `(1.0, 0.5, 1.0)`.
        temperature: Float, temperature of the Gumbel-softmax. Defaults to `1.0`.
        estimator: String, how the first two losses depend on a choice. `"straight_through"` uses
            the Gumbel-softmax and channel masks of the paper; the gradient of a mask is only an
            estimate of the effect of another width. `"exact"` uses the expectation over the soft
            choice of one gate, from the outputs of every route; its cost grows with the number of
            routes. With several gates, the choices `c` of the others are those that were sampled:
            with the loss `l(c)` of a path and the soft choice `s_g` of gate `g`, gate `g` learns
            from `E_g = sum_k s_gk l(c_1, ..., c_(g-1), k, c_(g+1), ..., c_G)`. The gradient is that
            of the sum of all `E_g`, and the reported loss is their mean. Defaults to
            `"straight_through"`.
        seed: Int, seed of the Gumbel noise. The noise is a function of the seed, the step and the
            place of the image in the batch. Defaults to `0`.
        soft_targets: Boolean, whether the SGS target is how sure the slimmest route is, instead of
            whether it is right. With the slimmest route's probabilities `p(X)`, and the one-hot
            vectors `e_1` and `e_n` of the first and the last route, the target of Eq. 10 is
            `T(X) = max_c p_c(X) e_1 + (1 - max_c p_c(X)) e_n`. An image near the border of two
            classes then counts for both routes, and labels do not matter, except with `"give_up"`:
            an image that the widest route gets wrong keeps the target `e_1`. Defaults to `False`,
            the paper's targets.
        input_shape: Tuple `(height, width, 3)` in pixels, the images whose multiply-adds count, for
            a model of open image size. Defaults to the model's.
        **kwargs: Keyword arguments of `keras.Model`. `dtype` defaults to the dtype policy of
            `model`.

    Raises:
        ValueError: If an argument has another value than those above, or the model does not have
            the routes.

    Example:

    ```python
    import numpy as np
    from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage
    from keras_dsnet.training import GateTrainer

    stages = MobileNetStage(1, 2, (8, 12)), MobileNetStage(1, 2, (8, 12, 16), gated=True)
    spec = MobileNetSpec(stem=(8, 12), stages=stages)
    model = DynamicSlimmableNetwork(spec, input_shape=(32, 32, 3), classes=10)
    images, labels = np.random.normal(size=(16, 32, 32, 3)), np.arange(16) % 10

    trainer = GateTrainer(model, routes=(0, 2))
    trainer.compile("sgd")
    trainer.fit(images.astype("float32"), labels, epochs=1)
    paths = model.route(images.astype("float32"))
    ```
    """

    def __init__(
        self,
        model: keras.Model,
        routes: Sequence[int] | None = None,
        strategy: str = "try_best",
        loss_weights: Sequence[float] = (1.0, 0.5, 1.0),
        temperature: float = 1.0,
        estimator: str = "straight_through",
        seed: int = 0,
        soft_targets: bool = False,
        input_shape: Sequence[int] | None = None,
        **kwargs: Any,
    ):
        super().__init__(model, **kwargs)
        if not isinstance(strategy, str) or strategy not in STRATEGIES:
            raise ValueError(
                f"`strategy` must be one of {STRATEGIES}. Received: strategy={strategy!r}"
            )
        if not isinstance(estimator, str) or estimator not in ESTIMATORS:
            raise ValueError(
                f"`estimator` must be one of {ESTIMATORS}. Received: estimator={estimator!r}"
            )
        self.routes = check_routes(model.routes if routes is None else routes, model.num_widths)
        self.strategy = strategy
        self.soft_targets = check_bool("soft_targets", soft_targets)
        self.loss_weights = _checked_loss_weights(loss_weights)
        self.temperature = check_number("temperature", temperature, "positive", lambda t: t > 0)
        self.estimator = estimator
        self.seed = check_int("seed", seed, -(2**31))
        # Under another name than that of the property of Keras.
        self._image_shape = None if input_shape is None else tuple(input_shape)
        self._use_routes()
        names = ["loss", "classification_loss", "complexity_loss", "sgs_loss"]
        names += ["accuracy", "gate_accuracy", "easy"]
        self._means = {name: keras.metrics.Mean(name) for name in names}
        self._madds = keras.metrics.Mean("madds", dtype="float64")
        gates = range(model.num_gates)
        prefixes = ["share"] if model.num_gates == 1 else [f"share_{gate}" for gate in gates]
        self._shares = [
            [keras.metrics.Mean(f"{prefix}_{width}") for width in self.routes]
            for prefix in prefixes
        ]

    def _use_routes(self):
        """Prepares the costs of the paths, and makes `routes` those of the model."""
        self.choice_madds = ChoiceMAdds(self.model, self.routes, self._image_shape)
        self.model.replace_routes(self.routes)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Losses, accuracies, MAdds and the share of the images at each width.

        A share is named by its width, such as "share_2", or with several gates by gate and width,
        such as "share_0_2".
        """
        shares = [share for gate in self._shares for share in gate]
        return [*self._means.values(), self._madds, *shares]

    @property
    def optimized_variables(self) -> list[keras.Variable]:
        """The variables that stage II trains: the slimming heads of gates that are not frozen."""
        gates = [gate for gate in self.model.slimming_gates if gate.trainable]
        return [variable for gate in gates for variable in gate.slimming_variables]

    def compile(self, optimizer: keras.Optimizer | str | None = None, **kwargs: Any) -> None:
        """Sets the optimizer.

        Args:
            optimizer: Keras optimizer that is not built yet. Weight decay does not apply to gates.
                Defaults to SGD with learning rate 0.05 and Nesterov momentum 0.9.
            **kwargs: Keyword arguments of `keras.Model.compile`.

        Raises:
            ValueError: If the optimizer is built, because it has then trained something else.
        """
        if optimizer is None:
            optimizer = keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True)
        super().compile(optimizer, **kwargs)

    def _before_training(self):
        super()._before_training()
        if tuple(self.model.routes) != self.routes:
            raise ValueError(
                f"The gates are trained to choose among the routes {self.routes}, and the model "
                "was given others since: make a new trainer. "
                f"Received: model.routes={tuple(self.model.routes)}"
            )

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Runs one step of stage II: one gradient step of the slimming heads on the loss of Eq. 12.

        Args:
            data: `(images, labels)` or `(images, labels, sample_weight)`.

        Returns:
            Dict from metric names to scalar tensors.
        """
        images, labels, weights = self.unpack(data, "a training batch", training=True)
        variables = [variable.value for variable in self.optimized_variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            losses, results = self.losses(images, labels, self._noise_seed(), weights)
            replicas = self.distribute_strategy.num_replicas_in_sync
            scaled = self.optimizer.scale_loss(losses["loss"] / replicas)
        gradients = tape.gradient(scaled, variables)
        # The step moves a schedule on.
        rate = tf.identity(self.optimizer.learning_rate)
        self.apply_gradients(gradients)
        return {**self._report(losses, results), "learning_rate": rate}

    def after_step(self):
        if not self.model.gates_trained:
            self.model.gates_trained = True

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Measures the losses and the choices of the gates without noise.

        Args:
            data: `(images, labels)` or `(images, labels, sample_weight)`.

        Returns:
            Dict from metric names to scalar tensors.
        """
        images, labels, weights = self.unpack(data, "an evaluation batch")
        return self._report(*self.losses(images, labels, weights=weights))

    def _noise_seed(self):
        return tf.stack([self.seed, tf.cast(self.optimizer.iterations, tf.int32)])

    def losses(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        noise_seed: tf.Tensor | None = None,
        weights: tf.Tensor | None = None,
    ) -> tuple[dict[str, tf.Tensor], dict[str, Any]]:
        """Computes the three losses of a batch (Eq. 12).

        Args:
            images: Tensor `[batch, height, width, 3]`.
            labels: Int tensor `[batch]`, or probabilities `[batch, classes]`.
            noise_seed: int32 tensor `[2]`, seed of the Gumbel noise. Defaults to no noise.
            weights: float32 tensor `[batch]`, weights of the losses of each image. All weights are
                1 by default.

        Returns:
            `(losses, results)`. `losses` is a dict of scalars, whose weighted sum is "loss".
            `results` is a dict of values per image: "right" and "easy", bool `[batch]`; "choices",
            a list of a one-hot tensor `[batch, len(routes)]` for each gate; and "gate_right",
            float32 `[batch]`, the share of the gates that choose the SGS target.
        """
        run = self._run(images, labels, noise_seed)
        easy, wide, targets = self._targets(run, labels)
        sgs = [
            gate_cross_entropy(gate, scores, self.routes, targets, weights)
            for gate, scores in zip(self.model.slimming_gates, run["scores"])
        ]
        losses = {
            "classification_loss": weighted_mean(run["classification_losses"], weights),
            "complexity_loss": weighted_mean(run["complexity_losses"], weights),
            "sgs_loss": tf.add_n(sgs) / len(sgs),
        }
        terms = zip(self.loss_weights, losses.values())
        losses["loss"] = tf.add_n([weight * loss for weight, loss in terms if weight])
        results = {
            "right": run["right"],
            "easy": easy,
            "choices": run["choices"],
            "gate_right": self._gate_right(run["scores"], wide),
        }
        return losses, results

    def _run(self, images, labels, noise_seed):
        """Runs the network as the estimator of the gradients needs it.

        Returns:
            Dict of the gates' "scores" and "choices", a list of a tensor for each gate;
            "classification_losses" and "complexity_losses", float32 `[batch]`; "right", bool
            `[batch]`; and "route_logits", a function of a width.
        """
        if self.estimator == "straight_through":
            return self._run_masked(images, labels, noise_seed)
        if self.model.num_gates > 1:
            return self._run_gate_by_gate(images, labels, noise_seed)
        return self._run_every_route(images, labels)

    def _run_masked(self, images, labels, noise_seed):
        """Runs the widest route with the channel masks of each image's choices."""

        def choose(gate, scores, index):
            return self._sample(gate, scores, index, noise_seed)

        masked = MaskedExecutor(self.model, self.routes, choose)
        features = self.model.run_sections(images, None, last=0, executor=masked)
        logits = self.model.run_sections(features, None, first=1, executor=masked)
        return {
            "route_logits": lambda width: self._route_logits(features, width),
            "scores": masked.scores,
            "choices": masked.choices,
            "classification_losses": label_cross_entropies(labels, logits),
            "complexity_losses": self.choice_madds.relative(masked.choices) ** 2,
            "right": is_right(labels, logits),
        }

    def _sample(self, gate, scores, index, noise_seed):
        seed = noise_seed
        if seed is not None:
            # The noise of a gate is independent of that of the others.
            seed = tf.stack([noise_seed[0] + 7919 * index, noise_seed[1]])
        return gate.sample(scores, self.routes, self.temperature, seed, self._share())

    def _share(self):
        """Returns this replica's share of a batch, so that its noise is that of one device."""
        count = self.distribute_strategy.num_replicas_in_sync
        if count == 1:
            return None
        return tf.distribute.get_replica_context().replica_id_in_sync_group, count

    def _run_gate_by_gate(self, images, labels, noise_seed):
        """Runs the chosen paths, and then every route of one gate with the others' choices."""

        def choose(gate, scores, index):
            # The other gates are fixed, so that a choice gives them no gradient.
            return tf.stop_gradient(self._sample(gate, scores, index, noise_seed))

        masked = MaskedExecutor(self.model, self.routes, choose)
        features, x = [], images
        for section in range(self.model.num_gates):
            x = self.model.run_sections(x, None, section, section, executor=masked)
            features.append(x)
        logits = self.model.run_sections(x, None, first=self.model.num_gates, executor=masked)
        expected = {"classification_losses": [], "complexity_losses": []}
        for index, gate in enumerate(self.model.slimming_gates):
            soft = gate.soft_choice(masked.scores[index], self.routes, self.temperature)
            values = self._other_routes(index, features[index], masked.choices, labels)
            for losses, value in zip(expected.values(), values):
                losses.append(tf.reduce_sum(soft * tf.stop_gradient(value), axis=1))
        return {
            "route_logits": lambda width: self._route_logits(features[0], width),
            "scores": masked.scores,
            "choices": masked.choices,
            "right": is_right(labels, logits),
            **{name: _mean_with_gradient_of_sum(losses) for name, losses in expected.items()},
        }

    def _other_routes(self, index, features, choices, labels):
        """Returns both losses of each image for every route of a gate, `[batch, len(routes)]`."""
        count, batch = len(self.routes), tf.shape(features)[0]
        # One run of a batch that holds the images once for each route.
        choices = [tf.concat([choice] * count, axis=0) for choice in choices]
        choices[index] = tf.repeat(tf.eye(count), batch, axis=0)
        masked = MaskedExecutor(self.model, self.routes, lambda gate, scores, place: choices[place])
        masked.choices = choices[: index + 1]
        repeated = tf.concat([tf.stop_gradient(features)] * count, axis=0)
        logits = self.model.run_sections(repeated, None, first=index + 1, executor=masked)
        entropies = label_cross_entropies(tf.concat([labels] * count, axis=0), logits)
        costs = self.choice_madds.relative(choices) ** 2
        return [tf.transpose(tf.reshape(loss, (count, batch))) for loss in (entropies, costs)]

    def _run_every_route(self, images, labels):
        """Runs every route. The losses are expectations over the soft choice."""
        (gate,) = self.model.slimming_gates
        front = SlicedExecutor(self.model.resolve_path("slimmest"))
        features = front.run(self.model.sections[0], images)
        soft = gate.soft_choice(front.scores[0], self.routes, self.temperature)
        choice = gate.sample(front.scores[0], self.routes)
        by_route = {width: self._route_logits(features, width) for width in self.routes}
        logits = tf.cast(tf.stack(list(by_route.values()), axis=1), tf.float32)
        each = tf.one_hot(tf.range(len(self.routes)), len(self.routes))
        costs = self.choice_madds.relative([each]) ** 2
        entropies = [label_cross_entropies(labels, route) for route in tf.unstack(logits, axis=1)]
        return {
            "route_logits": by_route.__getitem__,
            "scores": front.scores,
            "choices": [choice],
            "classification_losses": tf.reduce_sum(soft * tf.stack(entropies, 1), axis=1),
            "complexity_losses": tf.linalg.matvec(soft, costs),
            "right": is_right(labels, tf.reduce_sum(logits * choice[:, :, None], axis=1)),
        }

    def _targets(self, run, labels):
        """Returns the easy images, those for the widest route, and the SGS targets (Eq. 10).

        Args:
            run: Dict of `_run`.
            labels: Int tensor `[batch]`, or probabilities `[batch, classes]`.
        """
        route_logits = run["route_logits"]
        logits = route_logits(self.routes[0])
        easy = is_right(labels, logits)
        wide = tf.logical_not(easy)
        helps = tf.ones_like(wide)
        if self.strategy == "give_up":
            # Images that the widest route gets wrong too do not justify its cost.
            helps = is_right(labels, route_logits(self.routes[-1]))
            wide &= helps
        if not self.soft_targets:
            return easy, wide, wide
        doubt = 1.0 - tf.reduce_max(tf.nn.softmax(tf.cast(logits, tf.float32)), axis=1)
        return easy, wide, doubt * tf.cast(helps, tf.float32)

    def _route_logits(self, features, width):
        path = self.model.resolve_path((width,) * self.model.num_gates)
        return tf.stop_gradient(self.model.run_sections(tf.stop_gradient(features), path, first=1))

    def _gate_right(self, scores, wide):
        """Returns the share of the gates whose choice without noise is the SGS target."""
        target = tf.where(wide, self.routes[-1], self.routes[0])
        rights = [
            tf.cast(tf.equal(gate.choose(score, self.routes), target), tf.float32)
            for gate, score in zip(self.model.slimming_gates, scores)
        ]
        return tf.add_n(rights) / len(rights)

    def _report(self, losses, results):
        """Adds a batch to the metrics, and returns the mean of each so far."""
        for name, value in losses.items():
            # One value per image, because the last batch can be smaller.
            self._means[name].update_state(tf.fill(tf.shape(results["right"]), value))
        for name, key in (("accuracy", "right"), ("gate_accuracy", "gate_right"), ("easy", "easy")):
            self._means[name].update_state(results[key])
        self._madds.update_state(self.choice_madds.exact(results["choices"]))
        for shares, choice in zip(self._shares, results["choices"]):
            chosen = tf.one_hot(tf.argmax(choice, axis=1), len(self.routes))
            for share, values in zip(shares, tf.unstack(chosen, axis=1)):
                share.update_state(values)
        return {metric.name: metric.result() for metric in self.metrics}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "routes": self.routes,
            "strategy": self.strategy,
            "soft_targets": self.soft_targets,
            "loss_weights": self.loss_weights,
            "temperature": self.temperature,
            "estimator": self.estimator,
            "seed": self.seed,
            "input_shape": self._image_shape,
        }


def _mean_with_gradient_of_sum(losses):
    total = tf.add_n(losses)
    return total + tf.stop_gradient(total / len(losses) - total)


def _checked_loss_weights(loss_weights):
    right = "`loss_weights` must be three numbers of 0 or more, not all 0."
    received = f"{right} Received: loss_weights={loss_weights!r}"
    try:
        checked = tuple(map(float, loss_weights))
    except (TypeError, ValueError):
        raise ValueError(received) from None
    # NaN compares as False.
    fits = len(checked) == 3 and all(0 <= weight < math.inf for weight in checked)
    if isinstance(loss_weights, (str, dict)) or not fits or not any(checked):
        raise ValueError(received)
    return checked


class ChoiceMAdds:
    """Multiply-adds of the paths of a batch of images, as a function of the gates' choices.

    Choices are a list of one tensor `[batch, len(routes)]` per gate, one-hot or soft.

    Args:
        network: `DynamicSlimmableNetwork`.
        routes: Tuple of ints, candidate widths of the gates.
        input_shape: `(height, width, 3)` of the images. Defaults to the network's.
    """

    def __init__(self, network, routes, input_shape=None):
        self._front, self._sections = section_costs(network, routes, input_shape)
        self._widest = network.madds("widest", input_shape)

    def relative(self, choices):
        """Returns the ratio of the MAdds to those of the widest path, the base of Eq. 11.

        The result is a ratio because MAdds overflow float16 and are inexact in float32.

        Args:
            choices: List of tensors, one-hot or soft.

        Returns:
            float32 tensor `[batch]`, differentiable with respect to the choices.
        """
        total = self._front / self._widest
        previous = tf.ones_like(choices[0][:, :1])
        for choice, table in zip(choices, self._sections):
            relative = tf.constant(table / self._widest, tf.float32)
            total += tf.reduce_sum((previous @ relative) * choice, axis=1)
            previous = choice
        return total

    def exact(self, choices):
        """Returns the exact MAdds of every image.

        Args:
            choices: List of one-hot tensors.

        Returns:
            float64 tensor `[batch]` of whole numbers.
        """
        total = tf.constant(self._front, tf.float64)
        previous = tf.zeros_like(choices[0][:, 0], tf.int64)
        for choice, table in zip(choices, self._sections):
            current = tf.argmax(choice, axis=1)
            pairs = tf.stack([previous, current], axis=1)
            total += tf.cast(tf.gather_nd(tf.constant(table), pairs), tf.float64)
            previous = current
        return total
