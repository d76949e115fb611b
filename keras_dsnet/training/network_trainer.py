"""The base class of the trainers: a Keras model around a network, with checks of its data."""

import contextlib
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_dsnet.models.dynamic_slimmable_network import DynamicSlimmableNetwork
from keras_dsnet.utils.argument_checks import check_int, check_number
from keras_dsnet.utils.batch_checks import (
    check_images,
    check_labels,
    check_weights,
    class_numbers,
    line_of_assertion,
)
from keras_dsnet.utils.batches import batch_count, check_num_batches, is_endless
from keras_dsnet.utils.private_names import (
    OptimizerBuild,
    is_evaluated_by_fit,
    strategy_of_optimizer,
)

# Arguments of `compile` that the training steps ignore.
_NOT_COMPILED = ("loss", "loss_weights", "metrics", "weighted_metrics")
# Keras's activations whose outputs would not be what was trained.
_NOT_SOFTMAX = (keras.activations.sigmoid, keras.activations.hard_sigmoid, keras.activations.tanh)
_BOTH_WEIGHTS = (
    "Only one of `class_weight` and sample weights is allowed: multiply them into one weight of "
    "each image. Received: both"
)
_ONE_SCOPE = (
    "The network, the trainer and its optimizer must be created, and `compile` called, in the "
    "scope of the same tf.distribute strategy, or all without a strategy. Received: {}"
)
_NO_BATCH = "The data must have at least one image. Received: {} without a batch"


class NetworkTrainer(OptimizerBuild, keras.Model):
    """A Keras model around a network, which trains some of the network's variables.

    A subclass defines `train_step`, `test_step` and `optimized_variables`.

    Args:
        model: `DynamicSlimmableNetwork` with a classifier.
        **kwargs: Keyword arguments of `keras.Model`. `dtype` defaults to the dtype policy of
            `model`.

    Raises:
        ValueError: If `model` is not such a network, or the trainer is created in the scope of a
            distribution strategy and `model` was created in another scope.
    """

    def __init__(self, model: keras.Model, **kwargs: Any):
        self._check_model(model)
        strategy = tf.distribute.get_strategy()
        created_here = strategy.extended.variable_created_in_scope
        if not all(created_here(variable.value) for variable in model.variables):
            raise ValueError(_ONE_SCOPE.format("a network of another scope"))
        # Keras scales the loss where the trainer's dtype policy computes in float16.
        super().__init__(**{"dtype": model.dtype_policy, **kwargs})
        self.model = model
        self._strategy = strategy
        self.supports_jit = False
        self.built = True
        # Tuple of a weight per class while `fit` runs with `class_weight`, else None.
        self._class_weights = None
        self._batches_done = 0
        # Whether `metrics` are those of an evaluation, which may be others than those of training.
        self._is_evaluating = False

    @staticmethod
    def _check_model(model):
        check_network(model)
        activation = keras.activations.get(model.classifier_activation)
        if activation in _NOT_SOFTMAX:
            raise ValueError(
                "`model` must have the `classifier_activation` 'softmax' or None, because labels "
                "are compared with the softmax of its logits. Received: a network with "
                f"classifier_activation={activation.__name__!r}"
            )

    @property
    def optimized_variables(self) -> list[keras.Variable]:
        """The variables of the network that the trainer changes by gradients."""
        raise NotImplementedError

    def _undecayed_variables(self):
        """Returns the optimized variables that weight decay does not apply to."""
        return self.optimized_variables

    def compile(self, optimizer: keras.Optimizer | str, **kwargs: Any) -> None:
        """Sets the optimizer. Keras scales the loss where the network computes in float16.

        Args:
            optimizer: Keras optimizer that is not built yet, or its name.
            **kwargs: Keyword arguments of `keras.Model.compile`. Losses and metrics are those of
                the trainer, and cannot be passed.

        Raises:
            ValueError: If the optimizer is built, because it has then trained something else, or
                averages weights itself (`use_ema`); if a loss or metrics are passed; or if the
                optimizer or the trainer was created in the scope of another strategy.
        """
        for name in _NOT_COMPILED:
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"`{name}` must be None: {type(self).__name__} has its own losses and metrics. "
                    f"Received: {name}={kwargs[name]!r}"
                )
        optimizer = keras.optimizers.get(optimizer)
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if inner.built:
            raise ValueError(
                "`optimizer` must be a new one, because the variables that decay are fixed when it "
                "is built. "
                f"Received: optimizer={inner.name!r}, built before"
            )
        if inner.use_ema:
            raise ValueError(
                "`optimizer` must not average the weights: unlike the teacher of SupernetTrainer, "
                "its average has no batch-norm statistics. "
                f"Received: optimizer={inner.name!r} with use_ema=True"
            )
        created_in = strategy_of_optimizer(inner, self._strategy)
        if any(s is not self._strategy for s in (created_in, tf.distribute.get_strategy())):
            raise ValueError(_ONE_SCOPE.format("an optimizer or `compile` in another scope"))
        inner.exclude_from_weight_decay(var_list=self._undecayed_variables())
        kwargs.setdefault("jit_compile", False)
        super().compile(optimizer=optimizer, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded trainer like the saved one, and builds the optimizer's variables.

        Args:
            config: Dict that `get_compile_config` returned.
        """
        self.compile(**keras.saving.deserialize_keras_object(config))
        # Keras would build the optimizer for all trainable variables.
        self.optimizer.build(self.optimized_variables)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "model": keras.saving.serialize_keras_object(self.model)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "NetworkTrainer":
        return cls(**keras.saving.deserialize_keras_object(config))

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains the network, with the arguments and the result of `keras.Model.fit`.

        Everything that is known of images, labels and sample weights before the first step is
        checked then. Each batch is checked again before its step.

        Args:
            *args: Arguments of `keras.Model.fit`.
            **kwargs: Keyword arguments of `keras.Model.fit`. `class_weight` works with data of
                every kind, and classes that it does not name have the weight 1.

        Returns:
            `keras.callbacks.History`.

        Raises:
            ValueError: If the data do not fit the network, such as a label that is not a class; if
                a data set is endless and the number of steps is not given; or if all variables
                that this stage trains are frozen.
        """
        self._before_training()
        bound = inspect.signature(keras.Model.fit).bind(self, *args, **kwargs)
        options = bound.arguments
        self._check_data("x", _parts(options), options.get("steps_per_epoch"), "steps_per_epoch")
        validation = options.get("validation_data")
        if validation is not None:
            parts = validation if isinstance(validation, (tuple, list)) else [validation]
            steps = options.get("validation_steps")
            self._check_data("validation_data", parts, steps, "validation_steps")
        class_weights = self._checked_class_weights(options.pop("class_weight", None))
        if class_weights is None:
            return self._fit(bound)
        if options.get("sample_weight") is not None:
            raise ValueError(_BOTH_WEIGHTS)
        # The class weights are constants of the traced step.
        self._class_weights, self.train_function = class_weights, None
        try:
            return self._fit(bound)
        finally:
            self._class_weights = self.train_function = None

    def _fit(self, bound):
        self._batches_done = 0
        self._is_evaluating = False
        history = super().fit(*bound.args[1:], **bound.kwargs)
        # Some data sets show only when they are read that they are empty.
        if history.epoch and not self._batches_done:
            raise ValueError(_NO_BATCH.format("`x`"))
        return history

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates the network, with the arguments and the result of `keras.Model.evaluate`.

        Args:
            *args: Arguments of `keras.Model.evaluate`.
            **kwargs: Keyword arguments of `keras.Model.evaluate`.

        Returns:
            List or dict of metric values.

        Raises:
            ValueError: If the data do not fit the network, as in `fit`.
        """
        # `fit` has checked its validation data already.
        if not is_evaluated_by_fit(kwargs):
            options = inspect.signature(keras.Model.evaluate).bind(self, *args, **kwargs).arguments
            self._check_data("x", _parts(options), options.get("steps"), "steps")
        done, self._batches_done = self._batches_done, 0
        self._is_evaluating = True
        try:
            results = super().evaluate(*args, **kwargs)
        finally:
            # After `evaluate` alone, `metrics_names` are those of what it returns.
            self._is_evaluating = not is_evaluated_by_fit(kwargs)
        if not self._batches_done:
            raise ValueError(_NO_BATCH.format("the data"))
        self._batches_done += done
        return results

    def _check_data(self, name, parts, steps, steps_name):
        """Checks everything that is known of the data before the first step.

        Args:
            name: String, name of the argument, for messages.
            parts: List of images or a data set, labels, and sample weights; shorter where there are
                no labels or weights.
            steps: Int or None, the number of steps that the user passed.
            steps_name: String, the name of that argument.
        """
        x, y, weights = [*parts, None, None][:3]
        check_num_batches(steps, steps_name)
        if x is None or isinstance(x, (str, bytes, dict, list, tuple)):
            raise ValueError(
                f"`{name}` must be images and labels, two arrays, or a tf.data.Dataset, "
                "keras.utils.PyDataset or generator that gives both. "
                f"Received: {'None' if x is None else f'a {type(x).__name__}'} for the images"
            )
        if steps is None and is_endless(x):
            raise ValueError(
                f"`{steps_name}` must be the number of batches to read of `{name}`, which never "
                "ends. "
                f"Received: {steps_name}=None"
            )
        name = f"`{name}`"
        if batch_count(x) == 0:
            raise ValueError(_NO_BATCH.format(name))
        if isinstance(x, tf.data.Dataset):
            # A trace checks types and shapes, and reads no batch.
            check = tf.function(lambda batch: self.unpack(batch, name)[0], autograph=False)
            check.get_concrete_function(x.element_spec)
        elif isinstance(x, keras.utils.PyDataset):
            self.unpack(x[0], name)
        elif hasattr(x, "shape"):
            check_images(x[:1], self.model.input_shape[1:], name)
            self._check_arrays(tf.TensorSpec(x.shape), y, weights, name)

    def _check_arrays(self, images, labels, weights, name):
        """Checks all labels and sample weights that are passed as arrays.

        Args:
            images: `tf.TensorSpec` of the images.
            labels: Array, or whatever else the user passed.
            weights: Array or None.
            name: String, a description of the data for messages.
        """
        check_labels(_refuse_list(labels, name), images, self.model.classes, name)
        check_weights(_refuse_list(weights, name), images, name)

    def _checked_class_weights(self, class_weight):
        """Returns a tuple of a weight per class, or None if there are no class weights."""
        if class_weight is None:
            return None
        classes = self.model.classes
        if not isinstance(class_weight, dict):
            raise ValueError(
                "`class_weight` must be a dict from class numbers to weights. "
                f"Received: a {type(class_weight).__name__}"
            )
        weights = [1.0] * classes
        for number, weight in class_weight.items():
            number = check_int("class_weight", number, 0, classes - 1)
            weights[number] = check_number(f"class_weight[{number}]", weight, "a finite number")
        return tuple(weights)

    def _before_training(self):
        """Checks and prepares what the first training step needs, however it is called."""
        if not self.optimized_variables:
            raise ValueError(
                f"`{type(self).__name__}` has nothing to train: every layer that this stage trains "
                "is frozen. Set `trainable = True` on the network or on some of its layers, and "
                "compile the trainer again. Received: a frozen network"
            )

    def make_train_function(self, force=False):
        if self.train_function is None or force:
            super().make_train_function(force)
            self.train_function = self._with_plain_errors(self.train_function, self.after_step)

    def make_test_function(self, force=False):
        if self.test_function is None or force:
            super().make_test_function(force)
            self.test_function = self._with_plain_errors(self.test_function)

    def _with_plain_errors(self, function, after=lambda: None):
        """Wraps Keras's function of a step, so that a failed check of a batch is a ValueError.

        Args:
            function: Function that runs a step, such as Keras's function of an iterator.
            after: Function that is called after every step.
        """

        def run(*arguments):
            try:
                logs = function(*arguments)
            except tf.errors.OpError as error:
                line = line_of_assertion(error)
                if line is None:
                    raise
                raise ValueError(line) from None
            self._batches_done += 1
            after()
            return logs

        return run

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        self._before_training()
        self._is_evaluating = False
        return super().train_on_batch(*args, **kwargs)

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        self._is_evaluating = True
        return super().test_on_batch(*args, **kwargs)

    def replicated_step(self) -> Callable:
        """Compiles a training step for a loop under a strategy of several machines.

        Keras's `fit` fails there. The step is that of `train_step`, and a failed check of a batch
        is a ValueError, as in `fit`.

        Returns:
            Function of an iterator of a distributed data set and of a Boolean, whether this worker
            wants to stop. It runs a step and returns `(logs, stop)`: a dict of floats, the means
            over all replicas, and whether any worker wants to stop.
        """
        self._before_training()
        strategy, names = self.distribute_strategy, []

        def replica_step(batch, stop):
            logs = self.train_step(batch)
            names[:] = logs
            # One collective for all of them.
            values = [tf.cast(value, tf.float64) for value in (*logs.values(), stop)]
            context = tf.distribute.get_replica_context()
            return context.all_reduce("MEAN", tf.stack(values))

        @tf.function(autograph=False)
        def step(iterator, stop):
            return strategy.run(replica_step, args=(next(iterator), stop))

        step = self._with_plain_errors(step, self.after_step)

        def run(iterator, stop):
            values = step(iterator, tf.constant(float(stop)))
            *means, wishes = strategy.experimental_local_results(values)[0].numpy().tolist()
            return dict(zip(names, means, strict=True)), wishes > 0

        return run

    def apply_gradients(self, gradients: Sequence[tf.Tensor | None]) -> None:
        """Changes `optimized_variables` by the gradients of a step.

        Args:
            gradients: List of tensors, or None where a variable has no gradient, in the order of
                `optimized_variables`.
        """
        scales = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        if scales and self.distribute_strategy.num_replicas_in_sync > 1:
            gradients = _overflowed_everywhere(gradients)
        self.optimizer.apply_gradients(zip(gradients, self.optimized_variables))

    def saved_weights(self, teacher: bool = True) -> contextlib.AbstractContextManager:
        """Returns a context in which the network has the weights to save.

        Args:
            teacher: Boolean, whether to use the teacher's weights if the trainer has a teacher.
                Defaults to `True`.
        """
        return contextlib.nullcontext()

    def after_step(self):
        """Runs after every training step, and where a run goes on after its steps."""

    def unpack(
        self, data: Any, name: str = "a batch", training: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        """Checks a batch and returns its parts. In a traced step the checks are assertions.

        Args:
            data: `(images, labels)` or `(images, labels, sample_weight)`, the argument of
                `train_step` and `test_step`.
            name: String, a description of the batch for messages.
            training: Boolean, whether to apply the class weights of `fit`. Defaults to `False`.

        Returns:
            `(images, labels, weights)`. Images are `[batch, height, width, 3]`; labels are class
            numbers, int32 `[batch]`, or probabilities, float32 `[batch, classes]`; weights are
            float32 `[batch]` or None.

        Raises:
            ValueError: If the batch has other parts, or does not fit the network.
        """
        if isinstance(data, (tuple, list)) and not 1 <= len(data) <= 3:
            raise ValueError(
                "A batch must be (images, labels) or (images, labels, sample_weight). "
                f"Received: {len(data)} parts in {name}"
            )
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        images = check_images(images, self.model.input_shape[1:], name)
        labels = check_labels(labels, images, self.model.classes, name)
        weights = check_weights(weights, images, name)
        if training and self._class_weights is not None:
            if weights is not None:
                raise ValueError(_BOTH_WEIGHTS)
            weights = tf.gather(tf.constant(self._class_weights), class_numbers(labels))
        # The images depend on the check of the labels, so that batch-norm statistics do not move
        # in a batch that is refused.
        checked = [labels] if weights is None else [labels, weights]
        with tf.control_dependencies(checked):
            return tf.identity(images), labels, weights

    def call(self, inputs: tf.Tensor, **kwargs: Any) -> tf.Tensor:
        """Runs the network.

        Args:
            inputs: float32 tensor `[batch, height, width, 3]`, preprocessed images.
            **kwargs: `path` and `training`, as in a call of the network.

        Returns:
            Tensor `[batch, classes]`.
        """
        return self.model(inputs, **kwargs)


def check_network(model: Any, with_classifier: bool = True) -> None:
    """Checks that an argument is a network.

    Args:
        model: The argument.
        with_classifier: Boolean, whether the network must have a classifier. Defaults to `True`.

    Raises:
        ValueError: If `model` is not a `DynamicSlimmableNetwork`, or does not have a classifier.
    """
    if not isinstance(model, DynamicSlimmableNetwork):
        raise ValueError(
            "`model` must be a DynamicSlimmableNetwork, as the applications return it. "
            f"Received: a {type(model).__name__}"
        )
    if with_classifier and not model.include_top:
        raise ValueError(
            "`model` must have a classifier, whose outputs are compared with labels. "
            "Received: a network with include_top=False"
        )


def _overflowed_everywhere(gradients):
    """Makes the gradients of all replicas NaN if one of them is not finite on any replica.

    Keras asks only the first replica whether a step in float16 has overflowed and must be left out.
    """
    known = [gradient for gradient in gradients if gradient is not None]
    overflows = [tf.reduce_any(~tf.math.is_finite(gradient)) for gradient in known]
    count = tf.cast(tf.reduce_any(overflows), tf.float32)
    count = tf.distribute.get_replica_context().all_reduce("SUM", count)
    factor = tf.where(count > 0, math.nan, 1.0)
    return [None if g is None else g * tf.cast(factor, g.dtype) for g in gradients]


def _parts(options):
    return [options.get(name) for name in ("x", "y", "sample_weight")]


def _refuse_list(value, name):
    # Keras treats a list as the labels of several outputs.
    if isinstance(value, (list, tuple)):
        raise ValueError(
            "Labels and sample weights must be arrays. "
            f"Received: a {type(value).__name__} beside the images of {name}"
        )
    return value
