"""Stage II: trains the slimming heads by Sandwich Gate Sparsification (Section 3.4)."""

import math

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
from keras_dsnet.utils.argument_checks import check_int, check_number

STRATEGIES = ("try_best", "give_up")
ESTIMATORS = ("straight_through", "exact")


@keras.saving.register_keras_serializable(package="keras_dsnet")
class GateTrainer(NetworkTrainer):
    """Sandwich Gate Sparsification (Sec. 3.2 of the paper, Eqs. 10-12).

    The supernet is frozen, and only the slimming heads learn, from three losses: the classification
    loss through straight-through Gumbel-softmax and channel masks, the complexity penalty (Eq. 11),
    and the SGS loss (Eq. 10). Easy images, which the slimmest route classifies rightly, should take
    it; all others should take the widest.

    Once a step has trained the gates, the model's `gates_trained` is True, after an interrupted
    `fit` too.

    `fit` and `evaluate` take images, float32 `[batch, height, width, 3]`, and labels: class numbers
    `[batch]` or `[batch, 1]` of any type, or probabilities `[batch, classes]`. A sample weight, or
    the weight of an image's class, multiplies all three losses of that image; a batch's loss is the
    weighted sum over the number of images, as in Keras. Accuracies, MAdds and shares count every
    image alike.

    Args:
        model: a `DynamicSlimmableNetwork` with a trained supernet.
        routes: candidate widths of every gate; they become the model's. None: those it has.
        strategy: "try_best": images that the widest route gets wrong take the widest all the same;
            "give_up": they take the slimmest (Table 6).
        loss_weights: the three lambdas of Eq. 12, of 0 or more: classification, complexity, SGS.
        temperature: float, of the Gumbel-softmax.
        estimator: how the first two losses depend on a choice. "straight_through": Gumbel-softmax
            and channel masks, as in the paper; the gradient of a mask only estimates what another
            width would change. "exact": their expectation over the soft choice without noise, from
            the outputs of every route; for one gate and few routes.
        seed: int, of the Gumbel noise, which is a function of it, the step and the replica.
        **kwargs: of `keras.Model`; `dtype` is the model's by default.

    Raises:
        ValueError: on an argument that is none of the above, "exact" for several gates, or routes
            that the model does not have.

    Example:

    >>> trainer = GateTrainer(model, routes=(0, 1, 2, 3))
    >>> trainer.compile("sgd")
    >>> trainer.fit(dataset, epochs=10)
    """

    def __init__(
        self,
        model,
        routes=None,
        strategy="try_best",
        loss_weights=(1.0, 0.5, 1.0),
        temperature=1.0,
        estimator="straight_through",
        seed=0,
        **kwargs,
    ):
        super().__init__(model, **kwargs)
        if not isinstance(strategy, str) or strategy not in STRATEGIES:
            raise ValueError(
                f"`strategy` must be one of {STRATEGIES}. Received: strategy={strategy!r}"
            )
        known = isinstance(estimator, str) and estimator in ESTIMATORS
        if not known or (estimator == "exact" and model.num_gates > 1):
            raise ValueError(
                f"`estimator` must be one of {ESTIMATORS}, 'exact' for networks of one gate alone. "
                f"Received: estimator={estimator!r} for {model.num_gates} gates"
            )
        self.routes = check_routes(model.routes if routes is None else routes, model.num_widths)
        self.strategy = strategy
        self.loss_weights = _checked_loss_weights(loss_weights)
        self.temperature = check_number("temperature", temperature, "positive", lambda t: t > 0)
        self.estimator = estimator
        self.seed = check_int("seed", seed, -(2**31))
        model.replace_routes(self.routes)
        self.choice_madds = ChoiceMAdds(model, self.routes)
        self._gate_metrics = GateMetrics(self.choice_madds, self.routes, model.num_gates)

    @property
    def metrics(self):
        return self._gate_metrics.metrics

    @property
    def optimized_variables(self):
        """What stage II trains: the slimming heads of gates that are not frozen."""
        gates = [gate for gate in self.model.slimming_gates if gate.trainable]
        return [variable for gate in gates for variable in gate.slimming_variables]

    def compile(self, optimizer=None, **kwargs):
        """Sets the optimizer.

        Args:
            optimizer: an optimizer that is not built yet; None: SGD with momentum 0.9. Gates have
                no weight decay.
            **kwargs: of `keras.Model.compile`.

        Raises:
            ValueError: the optimizer is built: it has trained something before.
        """
        if optimizer is None:
            optimizer = keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True)
        super().compile(optimizer, **kwargs)

    def train_step(self, data):
        images, labels, weights = self.unpack(data, "a training batch", training=True)
        variables = [variable.value for variable in self.optimized_variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            losses, results = self.losses(images, labels, self._noise_seed(), weights)
            replicas = self.distribute_strategy.num_replicas_in_sync
            scaled = self.optimizer.scale_loss(losses["loss"] / replicas)
        gradients = tape.gradient(scaled, variables)
        self.optimizer.apply_gradients(zip(gradients, self.optimized_variables))
        logs = self._gate_metrics.update(losses, results)
        return {**logs, "learning_rate": self.optimizer.learning_rate}

    def test_step(self, data):
        images, labels, weights = self.unpack(data, "an evaluation batch")
        return self._gate_metrics.update(*self.losses(images, labels, weights=weights))

    def _after_step(self):
        if not self.model.gates_trained:
            self.model.gates_trained = True

    def _noise_seed(self):
        seed = tf.stack([self.seed, tf.cast(self.optimizer.iterations, tf.int32)])
        if self.distribute_strategy.num_replicas_in_sync == 1:
            return seed
        # Replicas see other images, and need noise of their own.
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return tf.random.fold_in(seed, replica)

    def losses(self, images, labels, noise_seed=None, weights=None):
        """Computes the three losses of a batch (Eq. 12).

        Args:
            images: `[batch, height, width, 3]`.
            labels: int `[batch]`, or probabilities `[batch, classes]`.
            noise_seed: int32 `[2]` of the Gumbel noise; None: no noise.
            weights: float32 `[batch]`, of the losses of each image; None: all 1.

        Returns:
            `(losses, results)`: scalars by name, their weighted sum as "loss"; and per image
            "right", "easy" (bool `[batch]`), "choices" (one-hot per gate) and "gate_right".
        """
        if self.estimator == "exact":
            run = self._run_every_route(images, labels)
        else:
            run = self._run_masked(images, labels, noise_seed)
        easy, wide = self._targets(run["route_logits"], labels)
        sgs = [
            gate_cross_entropy(gate, scores, self.routes, wide, weights)
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

    def _run_masked(self, images, labels, noise_seed):
        """Runs the widest route under the masks of the images' choices."""

        def choose(gate, scores, index):
            seed = noise_seed
            if seed is not None:
                # Every gate has noise of its own.
                seed = tf.stack([noise_seed[0] + 7919 * index, noise_seed[1]])
            return gate.sample(scores, self.routes, self.temperature, seed)

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

    def _run_every_route(self, images, labels):
        """Runs every route; the losses are their expectations over the soft choice."""
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

    def _targets(self, route_logits, labels):
        """Returns which images are easy, and which should take the widest route (Eq. 10)."""
        easy = is_right(labels, route_logits(self.routes[0]))
        wide = tf.logical_not(easy)
        if self.strategy == "give_up":
            # Hard images, which the widest gets wrong too, are not worth its cost.
            wide &= is_right(labels, route_logits(self.routes[-1]))
        return easy, wide

    def _route_logits(self, features, width):
        path = self.model.resolve_path((width,) * self.model.num_gates)
        return tf.stop_gradient(self.model.run_sections(tf.stop_gradient(features), path, first=1))

    def _gate_right(self, scores, wide):
        """Share of the gates whose choice, without noise, is the target."""
        target = tf.where(wide, self.routes[-1], self.routes[0])
        rights = [
            tf.cast(tf.equal(gate.choose(score, self.routes), target), tf.float32)
            for gate, score in zip(self.model.slimming_gates, scores)
        ]
        return tf.add_n(rights) / len(rights)

    def get_config(self):
        return {
            **super().get_config(),
            "routes": self.routes,
            "strategy": self.strategy,
            "loss_weights": self.loss_weights,
            "temperature": self.temperature,
            "estimator": self.estimator,
            "seed": self.seed,
        }


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


class ChoiceMAdds:
    """Multiply-adds of the paths that a batch of images takes, as a function of choices.

    Choices are a list of one tensor `[batch, len(routes)]` per gate: one-hot, or soft.

    Args:
        network: a `DynamicSlimmableNetwork`.
        routes: tuple of candidate widths.
    """

    def __init__(self, network, routes):
        self._front, self._sections = section_costs(network, routes)
        self._widest = network.madds("widest")

    def relative(self, choices):
        """Returns the MAdds over those of the widest path, differentiable: float32 `[batch]`.

        MAdds themselves overflow float16 and are inexact in float32.

        Args:
            choices: as above.
        """
        total = self._front / self._widest
        before = tf.ones_like(choices[0][:, :1])
        for choice, table in zip(choices, self._sections):
            relative = tf.constant(table / self._widest, tf.float32)
            total += tf.reduce_sum((before @ relative) * choice, axis=1)
            before = choice
        return total

    def exact(self, choices):
        """Returns the MAdds of every image, whole numbers without an error: float64 `[batch]`.

        Args:
            choices: as above, one-hot.
        """
        total = tf.constant(self._front, tf.float64)
        before = tf.zeros_like(choices[0][:, 0], tf.int64)
        for choice, table in zip(choices, self._sections):
            after = tf.argmax(choice, axis=1)
            pairs = tf.stack([before, after], axis=1)
            total += tf.cast(tf.gather_nd(tf.constant(table), pairs), tf.float64)
            before = after
        return total
