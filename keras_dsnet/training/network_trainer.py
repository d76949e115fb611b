"""What the trainers of both stages share."""

import keras


class NetworkTrainer(keras.Model):
    """A model around a network, that optimizes some of its variables.

    A subclass has the steps, and `optimized_variables`.

    Args:
        model: a `DynamicSlimmableNetwork`.
        **kwargs: of `keras.Model`; its `dtype` is the network's by default.
    """

    def __init__(self, model, **kwargs):
        # By the trainer's policy Keras decides whether the loss must be scaled.
        super().__init__(**{"dtype": model.dtype_policy, **kwargs})
        self.model = model
        self.supports_jit = False
        self.built = True

    def compile(self, optimizer, **kwargs):
        """Sets the optimizer; Keras scales the loss where the network computes in float16.

        Args:
            optimizer: a Keras optimizer that is not built yet, or its name.
            **kwargs: of `keras.Model.compile`.

        Raises:
            ValueError: the optimizer is built: it has trained something before.
        """
        optimizer = keras.optimizers.get(optimizer)
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if inner.built:
            raise ValueError(
                "`optimizer` must be a new one: which variables decay is fixed when it is built. "
                f"Received: optimizer={inner.name!r}, built before"
            )
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

    def unpack(self, data):
        """Returns the images and labels of a batch.

        Args:
            data: what `train_step` and `test_step` take.

        Raises:
            ValueError: there are sample weights, which no loss has.
        """
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        if weights is not None:
            raise ValueError(
                f"`{type(self).__name__}` takes images and labels, without sample weights. "
                "Received: (images, labels, sample_weight)"
            )
        return images, labels

    def call(self, inputs, **kwargs):
        """Runs the network.

        Args:
            inputs: float32 `[batch, height, width, 3]`, preprocessed.
            **kwargs: `path` and `training`, as in a call of the network.

        Returns:
            `[batch, classes]`.
        """
        return self.model(inputs, **kwargs)
