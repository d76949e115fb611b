"""Prediction without a traced step, so that a width that no image chose costs nothing."""

from typing import Any

import tensorflow as tf

from keras_dsnet.models.arguments import stack_images


class EagerPrediction:
    """The part of a routed model that runs `predict` eagerly. The model inherits from this class.

    The sections of the model are traced by themselves.
    """

    distribute_strategy: Any
    predict_step: Any

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Predicts as `keras.Model.predict` does. A list holds the images of one batch.

        Keras would take each image of a list for an input of its own.

        Args:
            x: As in `keras.Model.predict`, or a list of images of one size.
            *args: As in `keras.Model.predict`.
            **kwargs: As in `keras.Model.predict`.
        """
        model: Any = super()
        if isinstance(x, (list, tuple)):
            x = stack_images(x)
        return model.predict(x, *args, **kwargs)

    def make_predict_function(self, force: bool = False) -> Any:
        if self.distribute_strategy.num_replicas_in_sync > 1:
            model: Any = super()
            return model.make_predict_function(force)
        if force or getattr(self, "predict_function", None) is None:
            self.predict_function: Any = self._predict_eagerly
        return self.predict_function

    def _predict_eagerly(self, data):
        outputs = [self.predict_step(batch) for batch in data]
        if len(outputs) == 1:
            return outputs[0]
        return tf.nest.map_structure(lambda *parts: tf.concat(parts, 0), *outputs)
