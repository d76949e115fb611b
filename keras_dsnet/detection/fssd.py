"""FSSD: a detector whose backbone chooses for each image how many of its filters to run."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.detection.anchors import anchors_per_position, check_anchors, level_anchors
from keras_dsnet.detection.boxes import BOX_FORMAT, check_box_format, suppress
from keras_dsnet.detection.detector_export import DetectorExport
from keras_dsnet.detection.detector_routing import DetectorRouting, in_float32
from keras_dsnet.detection.detector_weights import check_detector_weights, settings_kept
from keras_dsnet.detection.fssd_arguments import (
    check_backbone,
    check_norm,
    check_pyramid,
    check_source_levels,
    one_of,
)
from keras_dsnet.detection.fssd_head import HEADS, FSSDHead
from keras_dsnet.detection.multibox import BACKGROUND, decode_boxes
from keras_dsnet.models import DynamicSlimmableNetwork, arguments
from keras_dsnet.models.atomic_saving import AtomicSaving
from keras_dsnet.models.costs import CostCounter, dynamic_madds
from keras_dsnet.models.eager_prediction import EagerPrediction
from keras_dsnet.models.level_features import level_shapes, sections_up_to
from keras_dsnet.models.path import Path, PathLike
from keras_dsnet.models.predictions import check_class_names
from keras_dsnet.models.refusals import Refusals
from keras_dsnet.models.routing import SectionRunner
from keras_dsnet.models.subnetwork import DTYPE, PlainExecutor
from keras_dsnet.models.topology import StepBuilder, split_levels, walk
from keras_dsnet.utils.argument_checks import check_int, check_number

_PYRAMID_CHANNELS = 256


@keras.saving.register_keras_serializable(package="keras_dsnet")
class FSSD(DetectorRouting, DetectorExport, EagerPrediction, AtomicSaving, Refusals, keras.Model):
    """Feature fusion single shot detector (arXiv 1712.00960) on a dynamic slimmable backbone.

    A 1x1 convolution gives each source level of the backbone the same number of channels. The
    results are resized to the first level, concatenated and normalised. A pyramid of 3x3
    convolutions follows, and each of its maps predicts the boxes and classes of its anchors, which
    are those of SSD. With 300x300 images the maps have 38, 19, 10, 5, 3 and 1 positions on a side.

    The layers after the backbone are static. Their batch norms have separate statistics for every
    width of the backbone, which `keras_dsnet.training.recalibrate_batch_norm` recomputes.

    Args:
        backbone: `DynamicSlimmableNetwork` with `include_top=False` and a fixed `input_shape`.
        classes: Int, number of classes without the background.
        levels: Sequence of names of `backbone.levels`, the source levels. Defaults to the last
            levels of the three largest strides, usually 8, 16 and 32.
        channels: Int, output channels of the convolution of each source level.
        pyramid: Int, channels of all maps of the pyramid, or sequence of ints, the channels of each
            map. An int makes as many maps as there are down to one position.
        scales: Sequence of ascending floats, the size of the anchors of each map as a fraction of
            the shorter side of the image, and one more. Defaults to those of SSD.
        aspect_ratios: Sequence of a sequence of floats above 1 for each map. Ratios `(2, 3)` make 6
            anchors, `(2,)` makes 4. Defaults to `(2,)` for the last two maps and `(2, 3)` for the
            others.
        head: "full", or "light" for depthwise separable convolutions in the pyramid and the
            predictions.
        norm: "batch" or "group". Defaults to "batch" for a backbone with one gate, and to "group"
            for a backbone with several gates, whose paths are too many for separate statistics.
            Groups need `channels` times the number of levels, and `pyramid`, in multiples of 4.
        activation: Name of the Keras activation after each norm of the head.
        class_names: Sequence of str, the name of each class by its index. None if the names are not
            known.
        bounding_box_format: Str, the format of the boxes to train on, such as "xyxy". Detections
            are always "rel_yxyx".
        routing: How an image gets its path: "gate", "confidence" or "gate+confidence".
        confidence_steps: Tuple of ascending ints, the widths that "confidence" tries in turn.
            Defaults to the narrowest and the widest of `routes`.
        thresholds: Tuple of floats in [0, 1], one for each step except the last. An image goes on
            to the next step where its confidence is at most the threshold. Defaults to 0.7 each.
        confidence: What "confidence" reads from the scores of a step: "largest_score", the largest
            probability; "clear_scores", 1 / (1 + n) for n probabilities between 0.3 and 0.7; or
            "low_entropy", 1 less the mean entropy of the anchors relative to its largest value.
        **kwargs: Further arguments of `keras.Model`. `dtype` defaults to that of the backbone.

    Call arguments:
        inputs: float32 `[batch, height, width, 3]`, preprocessed as for the backbone.
        path: As for the backbone. By default each image gets a path by `routing`.
        training: Bool. True needs a path.

    Returns:
        Dict of `"boxes"`, float32 `[batch, anchors, 4]`, the offsets of each anchor; and
        `"scores"`, float32 `[batch, anchors, classes + 1]`, logits. Score 0 is the background, and
        score `c + 1` is that of class `c`.

    Raises:
        ValueError: If an argument has a wrong type or value, the backbone does not have the levels
            or the path, or the images do not fit the backbone.

    Example:

    ```python
    import numpy as np
    from keras_dsnet.applications import DSMobileNet
    from keras_dsnet.detection import FSSD

    backbone = DSMobileNet(include_top=False, input_shape=(96, 96, 3), alpha=0.5)
    detector = FSSD(backbone, classes=3, head="light", channels=16, pyramid=32)
    images = np.zeros((2, 96, 96, 3), "float32")
    outputs = detector(images, path="slimmest")
    assert outputs["scores"].shape == (2, len(detector.anchors), 4)
    ```
    """

    def __init__(
        self,
        backbone: DynamicSlimmableNetwork,
        classes: int = 20,
        levels: Sequence[str] | None = None,
        channels: int = 112,
        pyramid: int | Sequence[int] = _PYRAMID_CHANNELS,
        scales: Sequence[float] | None = None,
        aspect_ratios: Sequence[Sequence[float]] | None = None,
        head: str = "full",
        norm: str | None = None,
        activation: str = "relu",
        class_names: Sequence[str] | None = None,
        bounding_box_format: str = BOX_FORMAT,
        routing: str = "gate",
        confidence_steps: Sequence[int] | None = None,
        thresholds: Sequence[float] | None = None,
        confidence: str = "largest_score",
        **kwargs: Any,
    ):
        check_backbone(backbone)
        super().__init__(**{"dtype": backbone.dtype_policy, **kwargs})
        arguments.check_policy(self.dtype_policy)
        self.backbone = backbone
        self.spec = backbone.spec
        # It has scores to be sure of, as a classifier has.
        self.include_top = True
        self.classes = arguments.check_classes(classes)
        self.class_names = class_names
        self.bounding_box_format = check_box_format(bounding_box_format)
        self.levels = check_source_levels(backbone, levels)
        self._options: dict[str, Any] = {
            "channels": check_int("channels", channels, 1),
            "head": one_of("head", head, HEADS),
            "norm": check_norm(norm, backbone),
            "activation": arguments.activation_name(activation, "activation"),
        }
        largest = "largest" if backbone.spec.has_wide_front else "widest"
        image_shape = backbone.input_shape[1:]
        shapes = level_shapes(backbone, self.levels, backbone.resolve_path(largest), image_shape)
        first = shapes[self.levels[0]][:2]
        self.pyramid = check_pyramid(pyramid, first)
        self.scales, self.aspect_ratios = check_anchors(scales, aspect_ratios, len(self.pyramid))
        builder = StepBuilder(backbone.spec, self.dtype_policy)
        builder.section = backbone.num_gates
        sections = {
            step.level: step.section for steps in backbone.sections for step in steps if step.level
        }
        counts = [anchors_per_position(ratios) for ratios in self.aspect_ratios]
        fssd_head = FSSDHead(
            builder,
            shapes,
            sections,
            self.classes,
            pyramid=self.pyramid,
            anchors=counts,
            **self._options,
        )
        self.anchors = level_anchors(
            image_shape[:2], fssd_head.sizes, self.scales, self.aspect_ratios
        )
        # Keras tracks layers in attributes. The wiring holds the same ones, and is not searched.
        self.head_layers = fssd_head.layers
        # `tf.train.Checkpoint` does not look into the lists of Keras.
        self._checkpointed = tf.Module()
        self._checkpointed.layers = [*self.head_layers]
        self._wiring = _Wiring(backbone, self.levels, fssd_head)
        self._runner = SectionRunner(self._wiring.steps, image_shape, self._wiring.run_steps)
        self.supports_jit = False
        self.built = True
        self.confidence = confidence
        self._set_up_routing(
            backbone.routes, backbone.gates_trained, routing, confidence_steps, thresholds
        )
        if not self.trainable:
            # `keras.Model` set `trainable` before there were layers to pass it on to.
            for layer in (backbone, *self.head_layers):
                layer.trainable = False
        self._is_made = True

    def __call__(self, inputs, *args, path=None, **kwargs):
        inputs = arguments.check_images(inputs, self.input_shape[1:])
        if path is None and not args and not arguments.inside_a_call():
            arguments.refuse_training(kwargs.get("training"))
        # As in the backbone, Keras would turn a NumPy integer into a tensor.
        if path is not None:
            resolved = self.resolve_path(path)
            kwargs["path"] = path if isinstance(path, (str, Path)) else resolved.gates
        return super().__call__(inputs, *args, **kwargs)

    def call(
        self, inputs: Any, path: PathLike | None = None, training: bool = False
    ) -> dict[str, tf.Tensor]:
        if path is None:
            arguments.refuse_training(training and any(v.trainable for v in self.variables))
            return self.run_routed(inputs)[0]
        outputs = self._runner.run_path(inputs, self.resolve_path(path), training)
        return in_float32(outputs)

    def detect(
        self,
        images: Any,
        path: PathLike | None = None,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.45,
        max_detections: int = 200,
    ) -> list[dict[str, Any]]:
        """Returns the detections of each image, after non-maximum suppression of each class.

        Args:
            images: float32 `[batch, height, width, 3]`, preprocessed.
            path: As in a call.
            score_threshold: Float in [0, 1], the lowest probability that is kept.
            iou_threshold: Float in [0, 1], the overlap from which the lower of two boxes of a class
                is dropped.
            max_detections: Int, the largest number of boxes of an image.

        Returns:
            List with a dict for each image: `"boxes"`, float32 `[n, 4]`, (ymin, xmin, ymax, xmax)
            as fractions of the image; `"scores"`, float32 `[n]`, probabilities in descending order;
            `"classes"`, int32 `[n]`; `"path"`, a tuple of ints, the width at each gate; and
            `"madds"`, an int, the multiply-adds of all that ran for the image up to the raw
            outputs, with every step that routing tried and the gates that it asked.

        Raises:
            ValueError: If a threshold is not in [0, 1], or the images or the path do not fit.
        """
        for name, value in (("score_threshold", score_threshold), ("iou_threshold", iou_threshold)):
            check_number(name, value, "a number from 0 to 1", lambda v: 0 <= v <= 1)
        check_int("max_detections", max_detections, 1)
        images = self._images(images)
        if path is None:
            outputs, taken, starts = self.run_routed(images)
            steps = () if self.routing == "gate" else self.confidence_steps
            gates = self.routing != "confidence"
            madds = dynamic_madds(self, starts.numpy(), taken.numpy(), steps, gates).tolist()
            paths = [tuple(row) for row in taken.numpy().tolist()]
        else:
            outputs = self(images, path=path)
            paths = [self.resolve_path(path).gates] * images.shape[0]
            madds = [self.madds(path)] * images.shape[0]
        boxes, probabilities = self.decode(outputs)
        found = suppress(boxes, probabilities, iou_threshold, score_threshold, max_detections)
        counts = found.pop("num_detections").numpy()
        arrays = {name: values.numpy() for name, values in found.items()}
        arrays["boxes"] = np.clip(arrays["boxes"], 0.0, 1.0)
        return [
            {
                **{name: values[index, :count] for name, values in arrays.items()},
                "path": taken_path,
                "madds": cost,
            }
            for index, (count, taken_path, cost) in enumerate(
                zip(counts, paths, madds, strict=True)
            )
        ]

    def decode(self, outputs: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Converts the outputs of a call to boxes and probabilities, before any suppression.

        Args:
            outputs: Dict of `"boxes"` and `"scores"`, as a call returns it.

        Returns:
            `(boxes, probabilities)`: float32 `[batch, anchors, 4]`, (ymin, xmin, ymax, xmax) as
            fractions of the image, and float32 `[batch, anchors, classes]`, without the background.
        """
        probabilities = tf.nn.softmax(tf.cast(outputs["scores"], tf.float32))
        return decode_boxes(outputs["boxes"], self.anchors), probabilities[..., BACKGROUND + 1 :]

    def run_sections(
        self,
        x: Any,
        path: Path | None,
        first: int = 0,
        last: int | None = None,
        executor: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Runs sections without tracing them, as `DynamicSlimmableNetwork.run_sections` does.

        What one section returns for the next is the features and a dict of the levels so far, and
        the last section returns `"boxes"` and `"scores"`.

        Args:
            x: Images, or the output of the section before `first`.
            path: A `Path`, whose widths may be tensors. Not used if `executor` is given.
            first: Int.
            last: Int, inclusive. Defaults to the last section.
            executor: The executor to run. Defaults to a `SlicedExecutor` of `path`.
            **kwargs: Further arguments of the `SlicedExecutor`.
        """
        if first == 0:
            x = self._images(x)
        outputs = self._runner.run(x, path, first, last, executor, **kwargs)
        return in_float32(outputs) if isinstance(outputs, dict) else outputs

    def run_any_width(self, first: int, x: Any, path: Path) -> Any:
        """Runs sections by one trace for all paths; see `SectionRunner.run_any_width`."""
        return self._runner.run_any_width(first, x, path)

    def run_steps(self, executor: Any, section: int, x: Any) -> Any:
        """Runs the steps of one section by any executor, such as a `CostCounter`.

        Args:
            executor: An `Executor`.
            section: Int.
            x: Input of the section: images, or the output of the section before.
        """
        return self._wiring.run_steps(executor, section, x)

    def _images(self, inputs):
        images = arguments.check_images(inputs, self.input_shape[1:])
        return tf.cast(tf.convert_to_tensor(images), self.compute_dtype)

    def resolve_path(self, path: PathLike) -> Path:
        """Returns the `Path` of the backbone that the argument `path` of a call stands for.

        Args:
            path: See `Call arguments`.
        """
        return self.backbone.resolve_path(path)

    def costs(self, path: PathLike, input_shape: Sequence[int] | None = None) -> CostCounter:
        """Returns a `CostCounter` with the costs of one image along a path.

        Args:
            path: See `Call arguments`.
            input_shape: `(height, width, 3)`. None, or the detector's.
        """
        counter = CostCounter(self.resolve_path(path))
        state: Any = arguments.resolve_image_shape(input_shape, self.input_shape[1:])
        for section in range(self.num_gates + 1):
            state = self.run_steps(counter, section, state)
        return counter

    def madds(
        self, path: PathLike, input_shape: Sequence[int] | None = None, include_pooling: bool = True
    ) -> int:
        """Returns the number of multiply-adds of one image along a path, up to the raw outputs.

        Resizing, decoding and non-maximum suppression are not counted.

        Args:
            path: See `Call arguments`.
            input_shape: `(height, width, 3)`. None, or the detector's.
            include_pooling: Bool, whether the input elements of every average pool of the backbone
                count too, as in the figures of the paper.
        """
        cost = self.costs(path, input_shape)
        return cost.madds + cost.pooling * include_pooling

    def subnetwork(self, path: PathLike, fold_batch_norm: bool = False) -> keras.Model:
        """Returns one sub-network as a plain Keras model of stock layers, with the same outputs.

        Args:
            path: See `Call arguments`.
            fold_batch_norm: Bool, whether batch normalisation is folded into the convolutions
                before it.
        """
        resolved = self.resolve_path(path)
        inputs = keras.Input(self.input_shape[1:], name="image", dtype=DTYPE)
        executor, state = PlainExecutor(resolved, fold_batch_norm), inputs
        if fold_batch_norm:
            self._wiring.head.fold_fusion_norm(executor)
        for section in range(self.num_gates + 1):
            state = self.run_steps(executor, section, state)
        name = "_".join([self.name, *map(str, resolved.gates)])
        return keras.Model(inputs, state, name=name)

    @property
    def input_shape(self) -> tuple:
        """Shape of the input, `(None, height, width, channels)`."""
        return self.backbone.input_shape

    @property
    def output_shape(self) -> dict[str, tuple]:
        """Shapes of the outputs of a call."""
        count = len(self.anchors)
        return {"boxes": (None, count, 4), "scores": (None, count, self.classes + 1)}

    @property
    def slimming_gates(self) -> list:
        """The gates with a slimming head, in order."""
        return self.backbone.slimming_gates

    @property
    def supernet_layers(self) -> list:
        """The layers of the backbone up to the last source level, and those of the head."""
        return [*self._wiring.backbone_layers, *self.head_layers]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The name of each class by its index, a tuple of str or None. Settable."""
        return self._class_names

    @class_names.setter
    def class_names(self, names: Sequence[str] | None) -> None:
        self._class_names = check_class_names(names, self.classes)

    def preprocess_input(self, images: Any) -> Any:
        """Normalises images as the backbone does.

        Args:
            images: RGB `[..., height, width, 3]`, pixels from 0 to 255.

        Returns:
            float32 of the same shape.
        """
        return self.backbone.preprocess_input(images)

    def load_weights(self, filepath: Any, skip_mismatch: bool = False, **kwargs: Any) -> None:
        check_detector_weights(self, filepath, skip_mismatch)
        with settings_kept(self):
            super().load_weights(filepath, skip_mismatch=skip_mismatch, **kwargs)

    def get_config(self) -> dict:
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "classes": self.classes,
            "levels": self.levels,
            "pyramid": self.pyramid,
            "scales": self.scales,
            "aspect_ratios": self.aspect_ratios,
            **self._options,
            "class_names": self.class_names,
            "bounding_box_format": self.bounding_box_format,
            **self.confidence_config(),
            "name": self.name,
            "trainable": self.trainable,
            "frozen_layers": tuple(x.name for x in self.head_layers if not x.trainable),
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config: dict) -> "FSSD":
        config = dict(config)
        # Older files have no such entry.
        frozen_layers = config.pop("frozen_layers", ())
        backbone = keras.saving.deserialize_keras_object(config["backbone"])
        detector = cls(**{**config, "backbone": backbone})
        for layer in detector.head_layers:
            if layer.name in frozen_layers:
                layer.trainable = False
        return detector


class _Wiring:
    """Runs a detector section by section, with any executor.

    The convolution of a source level runs as soon as its features exist. So whatever goes on to the
    next section has static channels, and images of different widths fit in one batch.
    """

    def __init__(self, backbone, levels, head):
        self.sections = sections_up_to(backbone, levels)
        self.steps = sum(self.sections, ())
        self.backbone_layers = [step.layer for step in walk(self.steps) if step.layer is not None]
        self._parts = [split_levels(steps, levels) for steps in self.sections]
        self.head = head

    def run_steps(self, executor, section, state):
        x, sources = (state, {}) if section == 0 else state
        for steps, level in self._parts[section]:
            x = executor.run(steps, x)
            if level is not None:
                sources = {**sources, level: self.head.run_lateral(executor, level, x)}
        if section < len(self._parts) - 1:
            return x, sources
        return self.head.run(executor, sources)
