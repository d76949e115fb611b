"""Export of a detector to a TFLite file."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.detection.backbone import detector_with_dtype
from keras_dsnet.detection.confidence import CONFIDENCES_OF_PROBABILITIES
from keras_dsnet.detection.multibox import BACKGROUND
from keras_dsnet.export import export_routed, export_subnetwork
from keras_dsnet.export.conversion import kept_in_float
from keras_dsnet.export.file_task import FileTask
from keras_dsnet.models import DynamicSlimmableNetwork
from keras_dsnet.models.path import PathLike
from keras_dsnet.models.preprocessing import Normalization


class DetectorExport:
    """The part of a detector that writes files. The detector inherits from it."""

    backbone: DynamicSlimmableNetwork
    _wiring: Any

    def export(
        self,
        filepath: Any,
        format: str = "tf_saved_model",
        verbose: Any = None,
        path: PathLike | None = None,
        **options: Any,
    ) -> Any:
        """Exports the detector for use without this package.

        With the format "litert" the signatures of the file return `boxes`, float32
        `[1, anchors, 4]`, (ymin, xmin, ymax, xmax) as fractions of the image; `scores`, float32
        `[1, anchors, classes]`, probabilities without the background; and `path`, int32
        `[num_gates]`. Boxes are decoded in float and can reach beyond the image. Non-maximum
        suppression is left to the app: `keras_dsnet.export.DynamicInterpreter.detect` does it, and
        the file has only builtin operators.

        Args:
            filepath: Path of the file or folder.
            format: "litert" writes one TFLite file in which each image gets its path by `routing`;
                see `keras_dsnet.export.export_routed`. Other formats are those of
                `keras.Model.export`.
            verbose: Bool, whether progress is logged. Defaults to True.
            path: Path of a sub-network, only for "litert". Writes a file of this sub-network; see
                `keras_dsnet.export.export_subnetwork`. Defaults to None, a file with all routes.
            **options: Options of the format: `routes`, `quantize`, `layout`,
                `representative_data`, `routing` and the others of `export_routed`, or those of
                `export_subnetwork`.

        Returns:
            For "litert" a description of the file; see `export_routed` and `export_subnetwork`.

        Raises:
            ValueError: If an option or the path does not fit, or the outputs of a float32 file
                differ from the detector's by more than 1e-4.
            OSError: If the file cannot be written.
        """
        detector: Any = self
        if format != "litert":
            if path is not None:
                raise ValueError(
                    "`path` is for format='litert'; `subnetwork(path)` returns a plain model for "
                    f"other formats. Received: path={path!r} with format={format!r}"
                )
            return keras.Model.export(detector, filepath, format, verbose, **options)
        if path is None:
            return export_routed(detector, filepath, verbose=verbose is not False, **options)
        for name in ("routes", "layout", "routing", "steps", "thresholds", "split"):
            if name in options:
                raise ValueError(
                    f"`{name}` is for a file with all routes, and `path` asks for one sub-network. "
                    f"Received: {name}={options[name]!r} with path={path!r}"
                )
        return export_subnetwork(detector, path, filepath, **options)

    @property
    def normalization(self) -> Normalization:
        """The normalisation of images, that of the backbone."""
        return self.backbone.normalization

    @property
    def sections(self) -> tuple:
        """The steps of the backbone up to the last source level, section by section."""
        return self._wiring.sections

    def file_task(self) -> FileTask:
        """Returns what the files of the detector return; see `keras_dsnet.export.file_task`."""
        return DetectorTask(self)


class DetectorTask(FileTask):
    """The task of a detector: decoded boxes with the probabilities of their classes.

    Between two sections the features are those of the backbone, followed by the outputs of the
    convolutions of the source levels so far.

    Args:
        network: `FSSD`.
    """

    gate_trainer = "keras_dsnet.detection.DetectionGateTrainer"

    @property
    def static_layers(self) -> tuple:
        return tuple(self._head.static_layers)

    @property
    def _head(self):
        return self.network._wiring.head

    def num_passed(self, section):
        return len(self._head.levels_before(section))

    def run_section(self, executor, section, features):
        state: Any = features
        if section:
            levels = self._head.levels_before(section)
            end = len(features) - len(levels)
            sources = zip(levels, features[end:], strict=True)
            state = features[:end], {level: (source,) for level, source in sources}
        if executor.runs_all:
            self._head.fold_fusion_norm(executor)
        elif section == self.network.num_gates:
            # The source levels before the last gate have run without knowing the width.
            self._head.fold_fusion_norm(executor, section)
        state = self.network.run_steps(executor, section, state)
        if section == self.network.num_gates:
            return state
        x, sources = state
        return (*x, *(source for (source,) in sources.values()))

    def finish(self, features, widest, routes_by_confidence=False, takes_pixels_in_int8=False):
        (offsets,), (logits,) = features["boxes"], features["scores"]
        # The exponentials of decoding would lose too many digits in int8.
        with kept_in_float(results=True):
            boxes, scores = self.network.decode({"boxes": offsets, "scores": logits})
            if takes_pixels_in_int8:
                scores = _softmax(logits)[..., BACKGROUND + 1 :]
        return {"boxes": boxes, "scores": scores}

    @property
    def confidence_inputs(self):
        return {"scores": tf.TensorSpec((1, len(self.network.anchors), self.network.classes))}

    def confidence_of(self, scores):
        confidence = CONFIDENCES_OF_PROBABILITIES[self.network.confidence](scores)
        return {"confidence": tf.where(confidence >= 0.0, confidence, 0.0)}

    @property
    def metadata(self):
        return {"outputs": ["boxes", "scores"], "confidence": self.network.confidence}

    def in_float32(self):
        detector = detector_with_dtype(self.network, "float32")
        return self if detector is self.network else type(self)(detector)

    def expected(self, images, path):
        boxes, scores = self.network.decode(self.network(np.asarray(images), path=path))
        return {"boxes": boxes.numpy(), "scores": scores.numpy()}


def _softmax(logits):
    """Returns the softmax of logits by operators that the converter leaves in float."""
    powers = tf.exp(logits - tf.reduce_max(logits, -1, keepdims=True))
    # A quotient would become a softmax again.
    return powers * (1.0 / tf.reduce_sum(powers, -1, keepdims=True))
