"""What the file of a network returns.

The files of classifiers and detectors differ in their results and in what the graphs of a file pass
on to each other. `FileTask` has what is true of a classifier. A network whose method `file_task`
returns a subclass is exported by that subclass.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.models.costs import features_shape
from keras_dsnet.models.executors import activate
from keras_dsnet.models.path import PathLike
from keras_dsnet.models.serialization import with_dtype
from keras_dsnet.models.topology import Executor


class FileTask:
    """The task of a network that classifies, or that returns features.

    Args:
        network: `DynamicSlimmableNetwork`, or another network with sections and routes.

    Attributes:
        gate_trainer: Name of the class that trains the gates of such networks.
    """

    gate_trainer = "keras_dsnet.training.GateTrainer"

    def __init__(self, network: Any):
        self.network = network

    @property
    def static_layers(self) -> tuple:
        """The convolutions that have the same input and output channels at every width."""
        return ()

    def num_passed(self, section: int) -> int:
        """Returns how many of the features that a section takes go on to later sections unchanged.

        They are the last ones.

        Args:
            section: Integer.
        """
        return 0

    def run_section(self, executor: Executor, section: int, features: tuple) -> Any:
        """Runs a section.

        Args:
            executor: `BlockExecutor`.
            section: Integer.
            features: Tuple of the image, or of the features of the section before.

        Returns:
            Tuple of features, or after the last section what `finish` takes.
        """
        return self.network.run_steps(executor, section, features)

    def finish(
        self,
        features: Any,
        widest: int,
        routes_by_confidence: bool = False,
        takes_pixels_in_int8: bool = False,
    ) -> dict[str, Any]:
        """Returns the results of a file.

        Args:
            features: What `run_section` returns for the last section.
            widest: Integer, the widest route of the file.
            routes_by_confidence: Boolean. Defaults to `False`.
            takes_pixels_in_int8: Boolean, whether the file is int8 and takes raw pixels. Its
                converter then rounds every softmax to int8. Defaults to `False`.

        Returns:
            Dict of `output` and, in a file that routes by confidence, `logits`, which
            `confidence_of` takes.
        """
        network = self.network
        logits = {"logits": features[0]} if routes_by_confidence else {}
        if network.include_top:
            return {"output": activate(network.classifier_activation, features[0]), **logits}
        # Both branches of an `IF` must have outputs of one shape.
        path = network.resolve_path((widest,) * network.num_gates)
        shape = features_shape(network.sections, path, network.input_shape[1:])
        missing = shape[-1] - sum(group.shape[-1] for group in features)
        features = tf.concat(features, -1)
        return {"output": tf.pad(features, [[0, 0]] * (features.shape.rank - 1) + [[0, missing]])}

    @property
    def confidence_inputs(self) -> dict[str, tf.TensorSpec]:
        """The outputs of the last section that `confidence_of` takes, as specs by name."""
        return {"logits": tf.TensorSpec((1, self.network.classes))}

    def confidence_of(self, logits: tf.Tensor) -> dict:
        """Computes the confidence of an image in its output.

        Args:
            logits: `[1, classes]`.

        Returns:
            Dict of `confidence`, float32 `[1]`. It is 0 where the largest probability is not a
            number.
        """
        largest = tf.reduce_max(tf.nn.softmax(tf.cast(logits, tf.float32)), 1)
        return {"confidence": tf.where(largest >= 0.0, largest, 0.0)}

    @property
    def metadata(self) -> dict[str, Any]:
        """What the metadata of a file say of the task, a dict for JSON."""
        # Apps that show classes refuse files of features.
        return {} if self.network.include_top else {"include_top": False}

    def in_float32(self) -> "FileTask":
        """Returns the task of the network in float32."""
        return type(self)(with_dtype(self.network, "float32"))

    def expected(self, images: Any, path: PathLike) -> dict[str, np.ndarray]:
        """Returns what a file should return for some images.

        Args:
            images: float32 `[batch, height, width, 3]`, preprocessed.
            path: The path, as in a call of the network.

        Returns:
            Dict of arrays.
        """
        return {"output": keras.ops.convert_to_numpy(self.network(images, path=path))}


def task_of(network: Any) -> FileTask:
    """Returns the `FileTask` of a network."""
    return network.file_task() if hasattr(network, "file_task") else FileTask(network)


def compare_results(
    results: Sequence[dict[str, np.ndarray]], expected: dict[str, np.ndarray]
) -> float:
    """Returns the largest difference of a file's results from the network's.

    Args:
        results: List of dicts, the results of each image.
        expected: Dict of arrays, as of `FileTask.expected`.

    Returns:
        Float. 1 is the largest expected value of a result.
    """
    differences = []
    for name, values in expected.items():
        outputs = np.concatenate([result[name] for result in results])
        # Without a classifier the file's features are padded to the widest route's channels.
        differences.append(largest_difference(outputs[..., : values.shape[-1]], values))
    return float(np.max(differences))


def largest_difference(outputs: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference of two arrays, where 1 is the largest expected value."""
    return float(np.abs(outputs - expected).max() / max(np.abs(expected).max(), 1e-12))
