"""Stage II of a detector: its gate learns to send images with missed boxes to the widest path."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_dsnet.detection.boxes import PADDING, box_iou
from keras_dsnet.detection.detection_trainer import BoxTargets
from keras_dsnet.detection.multibox import MultiboxLoss, match_anchors
from keras_dsnet.detection.target_checks import needed_classes
from keras_dsnet.models.executors import SlicedExecutor
from keras_dsnet.training.gate_trainer import GateTrainer
from keras_dsnet.utils.argument_checks import check_number

_FOUND_IOU = 0.5


@keras.saving.register_keras_serializable(package="keras_dsnet")
class DetectionGateTrainer(BoxTargets, GateTrainer):
    """Trains the gate of a detector by Sandwich Gate Sparsification (Sec. 3.2 of the paper).

    The detector is frozen. Only the slimming head learns, from the losses of `GateTrainer`: the
    loss of SSD and the complexity penalty, both as expectations over the soft choice from the
    outputs of every route, and the SGS loss. An image is easy if the slimmest route finds every box
    of it: a box of at least `score_threshold` for the right class that overlaps by 0.5 or more. An
    image without boxes is easy. The SGS target of easy images is the slimmest route, that of all
    others the widest. The metric "easy" is the share of easy images.

    `fit` and `evaluate` take the data of `DetectionTrainer`. Boxes that the target marks as
    `"difficult"`, bool `[batch, n]`, need not be found, as in `DetectionMetric`. "accuracy" is the
    share of the images of which the chosen route finds every box.

    Args:
        detector: `FSSD` of one gate, trained at all widths.
        routes: Tuple of ints, candidate widths of the gate in ascending order. Defaults to those of
            the detector.
        strategy: String, the target of images of which the widest route misses a box too: the
            widest with `"try_best"`, the slimmest with `"give_up"`. Defaults to `"try_best"`.
        loss_weights: Tuple of three floats, of the detection, complexity and SGS losses. Defaults
            to `(1.0, 0.5, 1.0)`.
        temperature: Float, temperature of the soft choice. Defaults to `1.0`.
        score_threshold: Float in (0, 1), the lowest probability of a box that counts as found.
            Defaults to `0.3`.
        seed: Int. Defaults to `0`.
        **kwargs: Keyword arguments of `keras.Model`.

    Raises:
        ValueError: If an argument has another value than those above.
    """

    def __init__(
        self,
        detector: keras.Model,
        routes: Sequence[int] | None = None,
        strategy: str = "try_best",
        loss_weights: Sequence[float] = (1.0, 0.5, 1.0),
        temperature: float = 1.0,
        score_threshold: float = 0.3,
        seed: int = 0,
        **kwargs: Any,
    ):
        self._check_model(detector)
        if detector.num_gates != 1:
            raise ValueError(
                f"`detector` must have one gate. Received: a detector of {detector.num_gates} gates"
            )
        for name in ("soft_targets", "input_shape"):
            if kwargs.get(name):
                raise ValueError(
                    f"`{name}` is for gates of classifiers. Received: {name}={kwargs[name]!r}"
                )
        super().__init__(
            detector,
            routes=routes,
            strategy=strategy,
            loss_weights=loss_weights,
            temperature=temperature,
            estimator="exact",
            seed=seed,
            **kwargs,
        )
        self.score_threshold = check_number(
            "score_threshold", score_threshold, "above 0 and below 1", lambda v: 0 < v < 1
        )
        self.multibox_loss = MultiboxLoss()

    def unpack(
        self, data: Any, name: str = "a batch", training: bool = False
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...], tf.Tensor | None]:
        """Checks a batch and returns its parts, as `DetectionTrainer.unpack`.

        Args:
            data: `(images, target)` or `(images, target, sample_weight)`.
            name: String, a description of the batch for messages.
            training: Boolean, not used.

        Returns:
            `(images, (boxes, classes, needed), weights)`: as `DetectionTrainer.unpack`, and int32
            `[batch, n]`, the classes of the boxes that have to be found, padded with -1.

        Raises:
            ValueError: If the batch has other parts, or does not fit the detector.
        """
        images, (boxes, classes), weights = super().unpack(data, name, training)
        return images, (boxes, classes, needed_classes(data[1], classes, name)), weights

    def _use_routes(self):
        self.choice_madds = _RouteMAdds(self.model, self.routes)
        self.model.backbone.replace_routes(self.routes)

    def _run(self, images, labels, noise_seed):
        # The losses are expectations, which have no noise.
        del noise_seed
        (gate,) = self.model.slimming_gates
        front = SlicedExecutor(self.model.resolve_path("slimmest"))
        features = self.model.run_sections(images, None, last=0, executor=front)
        features = tf.nest.map_structure(tf.stop_gradient, features)
        (scores,) = front.scores
        soft = gate.soft_choice(scores, self.routes, self.temperature)
        choice = gate.sample(scores, self.routes)
        losses, found = (tf.stack(each, axis=1) for each in self._run_routes(features, labels))
        costs = self.choice_madds.relative([tf.eye(len(self.routes))]) ** 2
        return {
            "scores": [scores],
            "choices": [choice],
            "classification_losses": tf.reduce_sum(soft * losses, axis=1),
            "complexity_losses": tf.linalg.matvec(soft, costs),
            "right": tf.reduce_sum(tf.cast(found, tf.float32) * choice, axis=1) > 0.5,
            "found": found,
        }

    def _targets(self, run, labels):
        del labels
        found = run["found"]
        easy = found[:, 0]
        wide = ~easy
        if self.strategy == "give_up":
            # Images of which the widest route misses a box too do not justify its cost.
            wide &= found[:, -1]
        return easy, wide, wide

    def _run_routes(self, features, target):
        """Returns the loss of each image and whether every box of it was found, for each route."""
        boxes, classes, needed = target
        matches = match_anchors(boxes, classes, self.model.anchors)
        matched = tf.reduce_sum(tf.cast(matches.positive, tf.float32), axis=1)
        losses, found = [], []
        for width in self.routes:
            path = self.model.resolve_path(width)
            outputs = self.model.run_sections(features, path, first=1)
            parts = self.multibox_loss(matches, outputs)
            # By the boxes of each image, so that all images count alike, as in classification.
            losses.append(tf.stop_gradient(tf.add_n(parts) / tf.maximum(matched, 1.0)))
            decoded = self.model.decode(outputs)
            found.append(found_every_box(*decoded, boxes, needed, self.score_threshold))
        return losses, found

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config["detector"] = config.pop("model")
        del config["estimator"], config["input_shape"]
        return {**config, "score_threshold": self.score_threshold}


class _RouteMAdds:
    """Multiply-adds of the routes of a detector of one gate, with the methods of `ChoiceMAdds`.

    Args:
        detector: `FSSD`.
        routes: Tuple of ints.
    """

    def __init__(self, detector, routes):
        self._madds = [detector.madds(width) for width in routes]
        widest = detector.madds("widest")
        # Ratios, because MAdds overflow float16 and are inexact in float32.
        self._ratios = [madds / widest for madds in self._madds]

    def relative(self, choices):
        return tf.linalg.matvec(choices[0], tf.constant(self._ratios, tf.float32))

    def exact(self, choices):
        index = tf.argmax(choices[0], axis=1)
        return tf.gather(tf.constant(self._madds, tf.float64), index)


def found_every_box(
    boxes: tf.Tensor,
    probabilities: tf.Tensor,
    true_boxes: tf.Tensor,
    true_classes: tf.Tensor,
    score_threshold: float = 0.3,
) -> tf.Tensor:
    """Returns of which images a detector finds every box.

    Args:
        boxes: float32 tensor `[batch, anchors, 4]`, in the format `"rel_yxyx"`, before any
            suppression.
        probabilities: float32 tensor `[batch, anchors, classes]`, without the background.
        true_boxes: float32 tensor `[batch, n, 4]`, padded with -1.
        true_classes: int32 tensor `[batch, n]`, padded with -1.
        score_threshold: Float, the lowest probability that counts. Defaults to 0.3.

    Returns:
        Bool tensor `[batch]`: whether every true box is overlapped by 0.5 or more by a box of its
        class. True for an image without boxes.
    """
    padding = [[0, 0], [0, 1]]
    true_boxes = tf.pad(true_boxes, [*padding, [0, 0]], constant_values=float(PADDING))
    true_classes = tf.pad(true_classes, padding, constant_values=PADDING)
    overlaps = box_iou(boxes, true_boxes)
    scores = tf.gather(probabilities, tf.maximum(true_classes, 0), axis=2, batch_dims=1)
    hits = tf.reduce_any((overlaps >= _FOUND_IOU) & (scores >= score_threshold), axis=1)
    return tf.reduce_all(hits | (true_classes < 0), axis=1)
