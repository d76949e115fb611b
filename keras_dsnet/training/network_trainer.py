"""What the trainers of both stages share."""

import contextlib
import inspect

import keras
import tensorflow as tf

from keras_dsnet.training.arguments import check_network
from keras_dsnet.utils.argument_checks import check_int, check_number
from keras_dsnet.utils.batch_checks import (
    check_images,
    check_labels,
    check_weights,
    class_numbers,
    line_of_assertion,
)
from keras_dsnet.utils.batches import batch_count, check_steps, is_endless
from keras_dsnet.utils.private_names import (
    OptimizerBuild,
    is_evaluated_by_fit,
    strategy_of_optimizer,
)

# Arguments of `compile` that no step would use.
_NOT_COMPILED = ("loss", "loss_weights", "metrics", "weighted_metrics")
_BOTH_WEIGHTS = (
    "There must be only one of `class_weight` and sample weights: multiply them into one weight of "
    "each image. Received: both"
)
_ONE_SCOPE = (
    "The network, the trainer and its optimizer must be made, and `compile` called, in the scope "
    "of the same tf.distribute strategy, or all outside of one. Received: {}"
)
_NO_BATCH = "There must be an image or more to read. Received: {} without a batch"


class NetworkTrainer(OptimizerBuild, keras.Model):
    """A model around a network, that optimizes some of its variables.

    A subclass has the steps, and `optimized_variables`.

    Args:
        model: a `DynamicSlimmableNetwork` with a classifier.
        **kwargs: of `keras.Model`; its `dtype` is the network's by default.

    Raises:
        ValueError: `model` is no such network, or was made outside of the scope of the strategy in
            which the trainer is made.
    """

    def __init__(self, model, **kwargs):
        check_network(model)
        strategy = tf.distribute.get_strategy()
        created_here = strategy.extended.variable_created_in_scope
        if not all(created_here(variable.value) for variable in model.variables):
            raise ValueError(_ONE_SCOPE.format("a network of another scope"))
        # By the trainer's policy Keras decides whether the loss must be scaled.
        super().__init__(**{"dtype": model.dtype_policy, **kwargs})
        self.model = model
        self._strategy = strategy
        self.supports_jit = False
        self.built = True
        # A weight for every class while `fit` runs with `class_weight`: a tuple.
        self._class_weights = None
        self._batches_done = 0

    def compile(self, optimizer, **kwargs):
        """Sets the optimizer; Keras scales the loss where the network computes in float16.

        Args:
            optimizer: a Keras optimizer that is not built yet, or its name.
            **kwargs: of `keras.Model.compile`, without losses and metrics, which the trainer has.

        Raises:
            ValueError: the optimizer is built, so that it has trained something before, or it
                averages weights itself; a loss or metrics are passed; or the optimizer or the
                trainer was made in the scope of another strategy.
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
                "`optimizer` must be a new one: which variables decay is fixed when it is built. "
                f"Received: optimizer={inner.name!r}, built before"
            )
        if inner.use_ema:
            raise ValueError(
                "`optimizer` must not average the weights: its average has no batch-norm "
                "statistics, as that of SupernetTrainer's teacher has. "
                f"Received: optimizer={inner.name!r} with use_ema=True"
            )
        created_in = strategy_of_optimizer(inner, self._strategy)
        if any(s is not self._strategy for s in (created_in, tf.distribute.get_strategy())):
            raise ValueError(_ONE_SCOPE.format("an optimizer or `compile` in another scope"))
        inner.exclude_from_weight_decay(var_list=self._undecayed_variables())
        kwargs.setdefault("jit_compile", False)
        super().compile(optimizer=optimizer, **kwargs)

    def compile_from_config(self, config):
        """Compiles a loaded trainer as the saved one was, with the variables of its optimizer.

        Args:
            config: of `get_compile_config`.
        """
        self.compile(**keras.saving.deserialize_keras_object(config))
        # Not by all that is trainable, as Keras would.
        self.optimizer.build(self.optimized_variables)

    def get_config(self):
        return {**super().get_config(), "model": keras.saving.serialize_keras_object(self.model)}

    @classmethod
    def from_config(cls, config):
        return cls(**keras.saving.deserialize_keras_object(config))

    def _undecayed_variables(self):
        """Returns those of the optimized variables that have no weight decay."""
        return self.optimized_variables

    def fit(self, *args, **kwargs):
        """Trains; arguments and result are those of `keras.Model.fit`.

        Images, labels and sample weights are checked as far as they are known before the first
        step, and each batch again before anything is computed from it.

        Args:
            *args: of `keras.Model.fit`.
            **kwargs: of `keras.Model.fit`. `class_weight` is taken with data of every kind, and
                classes that it leaves out have the weight 1.

        Raises:
            ValueError: on data that does not fit the network, such as a label that is no class; on
                an endless data set without a number of steps; and where everything that is to be
                trained is frozen.
        """
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
        # They are constants of the traced step.
        self._class_weights, self.train_function = class_weights, None
        try:
            return self._fit(bound)
        finally:
            self._class_weights = self.train_function = None

    def _fit(self, bound):
        self._batches_done = 0
        history = super().fit(*bound.args[1:], **bound.kwargs)
        # Of some data sets only reading shows that they are empty.
        if history.epoch and not self._batches_done:
            raise ValueError(_NO_BATCH.format("`x`"))
        return history

    def evaluate(self, *args, **kwargs):
        """Evaluates; arguments and result are those of `keras.Model.evaluate`.

        Args:
            *args: of `keras.Model.evaluate`.
            **kwargs: of `keras.Model.evaluate`.

        Raises:
            ValueError: on data that does not fit the network, as of `fit`.
        """
        # Within `fit` the data was looked at.
        if not is_evaluated_by_fit(kwargs):
            options = inspect.signature(keras.Model.evaluate).bind(self, *args, **kwargs).arguments
            self._check_data("x", _parts(options), options.get("steps"), "steps")
        done, self._batches_done = self._batches_done, 0
        results = super().evaluate(*args, **kwargs)
        if not self._batches_done:
            raise ValueError(_NO_BATCH.format("the data"))
        self._batches_done += done
        return results

    def _check_data(self, name, parts, steps, steps_name):
        """Checks what is known of images, labels and sample weights before a step reads them."""
        x, y, weights = [*parts, None, None][:3]
        check_steps(steps, steps_name)
        if x is None or isinstance(x, (str, bytes, dict, list, tuple)):
            raise ValueError(
                f"`{name}` must be images and labels, two arrays, or a tf.data.Dataset, "
                "keras.utils.PyDataset or generator that gives both. "
                f"Received: {'None' if x is None else f'a {type(x).__name__}'} for the images"
            )
        if steps is None and is_endless(x):
            raise ValueError(
                f"`{steps_name}` must say how many batches to take of `{name}`, which never ends. "
                f"Received: {steps_name}=None"
            )
        name = f"`{name}`"
        if batch_count(x) == 0:
            raise ValueError(_NO_BATCH.format(name))
        if isinstance(x, tf.data.Dataset):
            # A trace sees types and shapes, and reads no batch.
            check = tf.function(lambda batch: self.unpack(batch, name)[0], autograph=False)
            check.get_concrete_function(x.element_spec)
        elif isinstance(x, keras.utils.PyDataset):
            self.unpack(x[0], name)
        elif hasattr(x, "shape"):
            check_images(x[:1], self.model.input_shape[1:], name)
            images = tf.TensorSpec(x.shape)
            check_labels(_no_list(y, name), images, self.model.classes, name)
            check_weights(_no_list(weights, name), images, name)

    def _checked_class_weights(self, class_weight):
        """Returns a weight for every class, a tuple; None where there are none."""
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

    def make_train_function(self, force=False):
        if not self.optimized_variables:
            raise ValueError(
                f"`{type(self).__name__}` has nothing to train: every layer that this stage trains "
                "is frozen. Set `trainable = True` of the network or of some of its layers, and "
                "compile the trainer anew. Received: a frozen network"
            )
        if self.train_function is None or force:
            super().make_train_function(force)
            self.train_function = self._in_one_line(self.train_function, self._after_step)

    def make_test_function(self, force=False):
        if self.test_function is None or force:
            super().make_test_function(force)
            self.test_function = self._in_one_line(self.test_function)

    def _in_one_line(self, function, after=lambda: None):
        """Wraps a function of Keras that runs steps: a failed check of a batch is a ValueError."""

        def run(iterator):
            try:
                logs = function(iterator)
            except tf.errors.OpError as error:
                line = line_of_assertion(error)
                if line is None:
                    raise
                raise ValueError(line) from None
            self._batches_done += 1
            after()
            return logs

        return run

    def saved_weights(self, teacher=True):
        """Returns a context in which the network has the weights that are worth saving.

        Args:
            teacher: bool: those of the teacher, where there is one.
        """
        return contextlib.nullcontext()

    def _after_step(self):
        """Called when a step has changed the variables."""

    def unpack(self, data, name="a batch", training=False):
        """Returns what a batch holds, checked; in a traced step by assertions.

        Args:
            data: what `train_step` and `test_step` take: `(images, labels)` or
                `(images, labels, sample_weight)`.
            name: str, what the batch is, for messages.
            training: bool: multiply by the class weights of `fit`, where it has some.

        Returns:
            `(images, labels, weights)`: `[batch, height, width, 3]`; class numbers, int32
            `[batch]`, or probabilities, float32 `[batch, classes]`; float32 `[batch]` or None.

        Raises:
            ValueError: it holds something else, or something that does not fit the network.
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
        # Batch-norm statistics move with the images: not before the labels are known to be right.
        checked = [labels] if weights is None else [labels, weights]
        with tf.control_dependencies(checked):
            return tf.identity(images), labels, weights

    def call(self, inputs, **kwargs):
        """Runs the network.

        Args:
            inputs: float32 `[batch, height, width, 3]`, preprocessed.
            **kwargs: `path` and `training`, as in a call of the network.

        Returns:
            `[batch, classes]`.
        """
        return self.model(inputs, **kwargs)


def _parts(options):
    return [options.get(name) for name in ("x", "y", "sample_weight")]


def _no_list(value, name):
    # Keras would take a list for the labels of several outputs.
    if isinstance(value, (list, tuple)):
        raise ValueError(
            "Labels and sample weights must be arrays. "
            f"Received: a {type(value).__name__} beside the images of {name}"
        )
    return value
