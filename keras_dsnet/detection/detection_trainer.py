"""Stage I of a detector: trains all of its widths by the sandwich rule."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_dsnet.detection.fssd import FSSD
from keras_dsnet.detection.multibox import Matches, MultiboxLoss, count_matched, match_anchors
from keras_dsnet.detection.target_checks import check_target
from keras_dsnet.training.network_trainer import NetworkTrainer
from keras_dsnet.training.optimizers import L2SGD
from keras_dsnet.training.supernet_trainer import SupernetTrainer
from keras_dsnet.utils.batch_checks import check_images, check_weights

TARGETS = ("boxes", "ema")
# What SupernetTrainer does for each of them: keep no moving average, or keep one.
_AVERAGES = {"boxes": "in_place", "ema": "ema"}
_NO_CLASS_WEIGHT = (
    "`class_weight` must be None, because an image can have objects of several classes. "
    "Received: class_weight={!r}"
)


class BoxTargets(NetworkTrainer):
    """The data of detection, for trainers: images with a dict of boxes and classes."""

    @staticmethod
    def _check_model(model):
        if not isinstance(model, FSSD):
            raise ValueError(
                "`detector` must be a detector such as keras_dsnet.detection.FSSD. "
                f"Received: a {type(model).__name__}"
            )

    def _checked_class_weights(self, class_weight):
        if class_weight is not None:
            raise ValueError(_NO_CLASS_WEIGHT.format(class_weight))

    def _check_arrays(self, images, labels, weights, name):
        self._check_target(labels, images, name)
        check_weights(weights, images, name)

    def _check_target(self, target, images, name):
        model = self.model
        return check_target(target, images, model.classes, model.bounding_box_format, name)

    def unpack(
        self, data: Any, name: str = "a batch", training: bool = False
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor], tf.Tensor | None]:
        """Checks a batch and returns its parts. In a traced step the checks are assertions.

        Args:
            data: `(images, target)` or `(images, target, sample_weight)`.
            name: String, a description of the batch for messages.
            training: Boolean, not used.

        Returns:
            `(images, (boxes, classes), weights)`: `[batch, height, width, 3]`; float32
            `[batch, n, 4]` in the format `"rel_yxyx"` and int32 `[batch, n]`, padded with -1; and
            float32 `[batch]` or None.

        Raises:
            ValueError: If the batch has other parts, or does not fit the detector.
        """
        if not isinstance(data, (tuple, list)) or not 2 <= len(data) <= 3:
            raise ValueError(
                "A batch must be (images, target) or (images, target, sample_weight), where the "
                "target is a dict of 'boxes' and 'classes'. "
                f"Received: {_described(data)} in {name}"
            )
        images, target, weights = keras.utils.unpack_x_y_sample_weight(data)
        images = check_images(images, self.model.input_shape[1:], name)
        boxes, classes = self._check_target(target, images, name)
        if isinstance(weights, dict):
            # Keras repeats the weights for each part of the target.
            weights = weights.get("boxes")
        weights = check_weights(weights, images, name)
        # The images depend on the checks, so that batch-norm statistics do not move in a batch that
        # is refused.
        with tf.control_dependencies([boxes, classes, *([] if weights is None else [weights])]):
            return tf.identity(images), (boxes, classes), weights


@keras.saving.register_keras_serializable(package="keras_dsnet")
class DetectionTrainer(BoxTargets, SupernetTrainer):
    """Trains a detector at all widths by the sandwich rule (Sec. 4 of the paper).

    Each step runs the widest sub-network, `num_random` random ones and the slimmest on the same
    batch, with the first channels of the shared weights, and updates the weights with the sum of
    their gradients. The loss is that of SSD: boxes are matched with anchors, smooth L1 for the
    offsets of matched anchors, and cross entropy with hard negatives for the classes.

    `fit` and `evaluate` take images, float32 `[batch, height, width, 3]`, and a dict of `"boxes"`,
    `[batch, n, 4]` in the detector's `bounding_box_format`, and `"classes"`, `[batch, n]`, padded
    with -1. A sample weight multiplies every loss of its image. Losses are divided by the number of
    matched anchors of the global batch. Validation measures the losses of the label path and of the
    slimmest path; `evaluate_detection` measures the average precision.

    Args:
        detector: `FSSD`.
        target: String, what the random and the slimmest sub-networks learn from. `"boxes"` is the
            boxes, as the widest does. `"ema"` is the widest sub-network of the moving average of
            the detector, for the classes at the matched anchors and the hard negatives, and the
            boxes for the offsets. Defaults to `"boxes"`.
        num_random: Int, number of random sub-networks in a step. Defaults to `2`.
        negative_ratio: Float, number of negatives for each matched anchor. Defaults to `3.0`.
        classification: String, `"cross_entropy"` with hard negatives, or `"focal"`. Defaults to
            `"cross_entropy"`.
        box_weight: Float, weight of the loss of the offsets. Defaults to `1.0`.
        ema_momentum: Float in [0, 1), momentum of the moving average. Defaults to `0.997`.
        ema_warmup: Boolean, as in `SupernetTrainer`. Defaults to `True`.
        label_path: The path that is trained on the boxes: `"widest"` or `"largest"`. With
            `sandwich=False` it can be any path. Defaults to `"widest"`.
        sandwich: Boolean. With `False` only `label_path` is trained, as a detector of that width
            would be. Defaults to `True`.
        decay_norms_and_biases: Boolean, whether weight decay also applies to the parameters of
            normalization layers and to biases. It never applies to gates. Defaults to `False`.
        seed: Int, seed of the random widths. Defaults to `0`.
        **kwargs: Keyword arguments of `keras.Model`.

    Raises:
        ValueError: If an argument has another value than those above.

    Example:

    ```python
    import numpy as np
    from keras_dsnet.detection import FSSD, DetectionTrainer
    from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage

    stages = MobileNetStage(1, 2, (8, 12)), MobileNetStage(1, 2, (8, 12, 16), gated=True)
    spec = MobileNetSpec(stem=(8, 12), stages=stages)
    backbone = DynamicSlimmableNetwork(spec, input_shape=(32, 32, 3), include_top=False)
    detector = FSSD(backbone, classes=2, channels=8, pyramid=(16,), scales=(0.3, 0.5))
    images = np.random.normal(size=(4, 32, 32, 3)).astype("float32")
    boxes = np.tile(np.float32([[0.1, 0.1, 0.5, 0.6]]), (4, 1, 1))

    trainer = DetectionTrainer(detector, num_random=1)
    trainer.compile()
    trainer.fit(images, {"boxes": boxes, "classes": np.array([[0], [1], [0], [-1]])})
    ```
    """

    def __init__(
        self,
        detector: keras.Model,
        target: str = "boxes",
        num_random: int = 2,
        negative_ratio: float = 3.0,
        classification: str = "cross_entropy",
        box_weight: float = 1.0,
        ema_momentum: float = 0.997,
        ema_warmup: bool = True,
        label_path: str | int | Sequence[int] = "widest",
        sandwich: bool = True,
        decay_norms_and_biases: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ):
        if not isinstance(target, str) or target not in TARGETS:
            raise ValueError(f"`target` must be one of {TARGETS}. Received: target={target!r}")
        super().__init__(
            detector,
            target=_AVERAGES[target],
            num_random=num_random,
            ema_momentum=ema_momentum,
            ema_warmup=ema_warmup,
            label_path=label_path,
            sandwich=sandwich,
            decay_norms_and_biases=decay_norms_and_biases,
            seed=seed,
            **kwargs,
        )
        self.target = target
        self.multibox_loss = MultiboxLoss(negative_ratio, classification, box_weight)
        label = self._label_name
        names = ["loss", f"{label}_loss", f"{label}_class_loss", f"{label}_box_loss"]
        names += ["slimmest_loss"] * self.sandwich
        random = ["random_loss"] * bool(self.num_random)
        self._set_metrics([*names, *random, "matched"], [*names, "matched"])

    def compile(self, optimizer: keras.Optimizer | str | None = None, **kwargs: Any) -> None:
        """Sets the optimizer.

        Args:
            optimizer: Keras optimizer that is not built yet. Defaults to SSD's for a batch of 128:
                `L2SGD(0.004, nesterov=False, weight_decay=5e-4)`.
            **kwargs: Keyword arguments of `keras.Model.compile`.

        Raises:
            ValueError: If the optimizer is built, because it has then trained something else.
        """
        if optimizer is None:
            optimizer = L2SGD(0.004, nesterov=False, weight_decay=5e-4)
        super().compile(optimizer, **kwargs)

    def _gradients(self, images, labels, subnetworks, weights=None):
        """Runs the sub-networks forward and backward, and sums their gradients.

        Returns:
            `(losses, batch, gradients)`: a pair of the loss of classes and of boxes for each path;
            the `_Batch`; and the gradients of the sum of all losses, one for each of
            `optimized_variables`.
        """
        batch = self._batch(images, labels, weights)
        teacher = self._teacher_outputs(images, subnetworks.paths[0])
        losses = [None] * len(subnetworks.paths)

        def loss_of(index, outputs):
            losses[index] = self._path_losses(batch, outputs, teacher if index else None)
            return self._weighted(losses[index])

        return losses, batch, self._summed_gradients(images, subnetworks, loss_of)

    def _batch(self, images, target, weights):
        matches = match_anchors(*target, self.model.anchors)
        return _Batch(images, matches, weights, count_matched(matches))

    def _teacher_outputs(self, images, path):
        if self.target == "boxes" or not self.sandwich:
            return None
        with self._average.scope():
            outputs = self.model.run_sections(images, path)
        return {name: tf.stop_gradient(output) for name, output in outputs.items()}

    def _path_losses(self, batch, outputs, teacher=None):
        """Returns the loss of the classes and that of the boxes, of the images of this replica.

        The sum over replicas is the loss of the global batch.
        """
        losses = self.multibox_loss(batch.matches, outputs, teacher)
        if batch.weights is not None:
            losses = [loss * batch.weights for loss in losses]
        return [tf.reduce_sum(loss) / batch.matched for loss in losses]

    def _weighted(self, losses):
        return losses[0] + self.multibox_loss.box_weight * losses[1]

    def _training_values(self, losses, batch, labels=None):
        del labels
        totals = [self._weighted(pair) for pair in losses]
        values = {"loss": tf.add_n(totals), f"{self._label_name}_loss": totals[0]}
        values[f"{self._label_name}_class_loss"] = losses[0][0]
        values[f"{self._label_name}_box_loss"] = losses[0][1]
        if len(totals) > 1:
            values["slimmest_loss"] = totals[-1]
        if len(totals) > 2:
            values["random_loss"] = tf.add_n(totals[1:-1]) / (len(totals) - 2)
        # The metrics are means over the images of all replicas, and these are parts of sums.
        replicas = self.distribute_strategy.num_replicas_in_sync
        values = {name: value * replicas for name, value in values.items()}
        positive = tf.cast(batch.matches.positive, tf.float32)
        return {**values, "matched": tf.reduce_sum(positive, axis=1)}

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Measures the label path and the slimmest path on the boxes.

        Args:
            data: `(images, target)` or `(images, target, sample_weight)`.

        Returns:
            Dict from metric names to scalar tensors.
        """
        images, target, weights = self.unpack(data, "an evaluation batch")
        batch = self._batch(images, target, weights)
        paths = [self.label_path, "slimmest"] if self.sandwich else [self.label_path]
        paths = [self.model.resolve_path(path) for path in paths]
        outputs = [self.model.run_sections(images, path) for path in paths]
        losses = [self._path_losses(batch, each) for each in outputs]
        return self._report(self._training_values(losses, batch), images)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        names = ("temperature", "scale_distillation", "label_smoothing", "model")
        kept = {name: value for name, value in config.items() if name not in names}
        return {
            **kept,
            "detector": config["model"],
            "negative_ratio": self.multibox_loss.negative_ratio,
            "classification": self.multibox_loss.classification,
            "box_weight": self.multibox_loss.box_weight,
        }


class _Batch(NamedTuple):
    """A checked batch.

    Args:
        images: Tensor `[batch, height, width, 3]`.
        matches: `Matches` of its boxes.
        weights: float32 tensor `[batch]`, the sample weights, or None.
        matched: float32 scalar, the number of matched anchors of the global batch.
    """

    images: tf.Tensor
    matches: Matches
    weights: tf.Tensor | None
    matched: tf.Tensor


def _described(data):
    if isinstance(data, (tuple, list)):
        return f"{len(data)} parts"
    return f"a {type(data).__name__}"
