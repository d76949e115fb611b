"""The model class: a supernet whose gates choose a sub-network for each image."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_dsnet.models import arguments, serialization
from keras_dsnet.models.atomic_saving import AtomicSaving
from keras_dsnet.models.costs import CostCounter, count_costs, width_table
from keras_dsnet.models.eager_prediction import EagerPrediction
from keras_dsnet.models.image_settings import ImageSettings
from keras_dsnet.models.level_features import LevelFeatures
from keras_dsnet.models.output_shapes import OutputShapes
from keras_dsnet.models.path import Path, PathLike, check_path, path_argument, resolve_path
from keras_dsnet.models.predictions import (
    check_class_names,
    check_number_of_classes,
    decode_predictions,
)
from keras_dsnet.models.preprocessing import Normalization
from keras_dsnet.models.refusals import Refusals
from keras_dsnet.models.routing import SectionRunner
from keras_dsnet.models.routing_settings import (
    RoutingSettings,
    check_routing,
)
from keras_dsnet.models.spec import NetworkSpec, spec_config, spec_from_config
from keras_dsnet.models.subnetwork import plain_subnetwork
from keras_dsnet.models.topology import walk
from keras_dsnet.utils.argument_checks import check_bool


@keras.saving.register_keras_serializable(package="keras_dsnet")
class DynamicSlimmableNetwork(
    RoutingSettings,
    ImageSettings,
    OutputShapes,
    LevelFeatures,
    EagerPrediction,
    AtomicSaving,
    Refusals,
    keras.Model,
):
    """A network that chooses for each image how many of its filters to run.

    Args:
        spec: A `NetworkSpec`, such as `MobileNetSpec`, that describes the network.
        input_shape: `(height, width, 3)`. Height and width may be None.
        classes: Int, number of classes.
        include_top: Bool, whether the network ends with the pooling and the classifier. Without
            them the outputs are the last features. Features of a routed batch are padded with zeros
            to the number of channels of the widest of `routes`.
        classifier_activation: Name of a Keras activation. None returns logits.
        routes: Tuple of ints, candidate widths of every gate in ascending order. Defaults to all
            widths.
        gates_trained: Bool, whether the slimming heads were trained to choose a width.
        class_names: Sequence of str, the name of each class by its index. None if the names are not
            known.
        normalization: The `Normalization` that images get before the network. Exported files repeat
            it. Defaults to ImageNet's.
        pooling: "avg" or "max" to return the mean or maximum of the last features over height and
            width. It needs `include_top=False`. Defaults to None, the features themselves.
        routing: How an image gets its path: "gate", "confidence" or "gate+confidence".
        confidence_steps: Tuple of ascending ints, the widths that "confidence" tries in turn.
            Defaults to the narrowest and the widest of `routes`.
        thresholds: Tuple of floats in [0, 1], one for each step except the last. An image goes on
            to the next step where its confidence is at most the threshold. Defaults to 0.7 each.
        crop_fraction: Float above 0 and at most 1, the fraction of each side of a resized image
            that the network is evaluated on. Exported files repeat it. Defaults to None, not known.
        **kwargs: Further arguments of `keras.Model`. `dtype` may be a policy such as
            "mixed_bfloat16".

    Call arguments:
        inputs: float32 `[batch, height, width, 3]`, preprocessed, of the size in `input_shape`.
        path: Int (this width at every gate), tuple of ints (one width per gate), a row of what
            `route` returns, "slimmest", "widest" or, if the spec has a wide front, "largest". A
            `Path` may hold int32 scalar tensors inside a traced function. By default each image
            gets a path by `routing`, and only what this needs is computed.
        training: Bool. True needs a path. A network whose variables are all frozen also routes
            inside a model that trains: it is a feature extractor.

    Returns:
        float32 `[batch, classes]`. Without the top `[batch, height, width, channels]`, or with
        `pooling` `[batch, channels]`, in the compute dtype of the network.

    Raises:
        ValueError: If an argument has a wrong type or value, the network does not have the path,
            the images do not have the size or the channels of `input_shape`, or `training` is True
            without a path.

    Example:

    ```python
    import numpy as np
    from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage

    spec = MobileNetSpec(stem=(8,), stages=(MobileNetStage(2, 2, (8, 16, 24), gated=True),))
    network = DynamicSlimmableNetwork(spec, input_shape=(32, 32, 3), classes=10)
    images = np.zeros((2, 32, 32, 3), "float32")
    assert network(images, path="slimmest").shape == (2, 10)
    network.gates_trained = True  # After `keras_dsnet.training.GateTrainer`.
    assert network(images).shape == (2, 10)
    assert network.route(images).shape == (2, 1)
    ```
    """

    def __init__(
        self,
        spec: NetworkSpec,
        input_shape: Sequence[int | None] = (224, 224, 3),
        classes: int = 1000,
        include_top: bool = True,
        classifier_activation: Any = "softmax",
        routes: Sequence[int] | None = None,
        gates_trained: bool = False,
        class_names: Sequence[str] | None = None,
        normalization: Normalization | None = None,
        pooling: str | None = None,
        routing: str = "gate",
        confidence_steps: Sequence[int] | None = None,
        thresholds: Sequence[float] | None = None,
        crop_fraction: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not isinstance(spec, NetworkSpec):
            raise ValueError(
                "`spec` must be a NetworkSpec, such as keras_dsnet.models.MobileNetSpec(). "
                f"Received: spec={spec!r}"
            )
        arguments.check_policy(self.dtype_policy)
        self.spec = spec
        self.classes = arguments.check_classes(classes)
        self.include_top = check_bool("include_top", include_top)
        self.pooling = arguments.check_pooling(pooling, self.include_top)
        self.classifier_activation = arguments.activation_name(classifier_activation)
        self._image_shape = arguments.check_image_shape(input_shape)
        self.class_names = class_names
        self.normalization = normalization
        self.crop_fraction = crop_fraction
        steps = spec.build(
            self._image_shape[-1], self.classes, self.include_top, self.dtype_policy, self.pooling
        )
        # Keras tracks layers in attributes and names them by it in weights files. The steps hold
        # the same layers, so they stay inside an object that Keras does not search.
        self.supernet_layers = [step.layer for step in walk(steps) if step.layer is not None]
        # `tf.train.Checkpoint` does not look into the lists of Keras.
        self._checkpointed = tf.Module()
        self._checkpointed.layers = [*self.supernet_layers]
        self._runner = SectionRunner(steps, self._image_shape)
        self.supports_jit = False
        self.built = True
        self._set_up_routing(routes, gates_trained, routing, confidence_steps, thresholds)
        if not self.trainable:
            # `keras.Model` set `trainable` before there were layers to pass it on to.
            self._freeze(trainable=False)
        self._is_made = True

    def __call__(self, inputs, *args, path=None, **kwargs):
        inputs = arguments.check_images(inputs, self._image_shape)
        if path is None and not args and not arguments.inside_a_call():
            arguments.refuse_training(kwargs.get("training"))
        # The path is resolved here because Keras would turn a NumPy integer into a tensor on the
        # way to `call`. It stays a plain value, since a functional model around the network writes
        # it into its config.
        if path is not None:
            kwargs["path"] = path_argument(path, self.resolve_path, self.spec.has_wide_front)
        return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs: Any, path: PathLike | None = None, training: bool = False) -> tf.Tensor:
        if path is None:
            # A model around the network passes its own `training` on.
            arguments.refuse_training(training and any(v.trainable for v in self.variables))
            outputs, _, _ = self.run_routed(inputs)
        else:
            outputs = self._runner.run_path(inputs, self.resolve_path(path), training)
        if not self.include_top:
            return outputs
        # Softmax of float16 logits loses digits that users compare.
        logits = tf.cast(outputs, tf.float32)
        return keras.activations.get(self.classifier_activation)(logits)

    def route(self, inputs: Any) -> tf.Tensor:
        """Returns the path of each image, that of the output that a call gives.

        Args:
            inputs: float32 `[batch, height, width, 3]`, preprocessed.

        Returns:
            int32 `[batch, num_gates]`, one width per gate. Routing by confidence gives the same
            width for every gate.

        Raises:
            ValueError: If the images do not have the size or the channels of `input_shape`.
        """
        images = self._images(inputs)
        if self.routing == "gate":
            return self._runner.choose_widths(images, self.gate_candidates())
        return self.run_routed(images, run_last=False)[1]

    def run_dynamic(self, inputs: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs each image along the path that it gets by `routing`.

        Args:
            inputs: float32 `[batch, height, width, 3]`, preprocessed.

        Returns:
            `(logits, paths)`: `[batch, classes]` and int32 `[batch, num_gates]`.

        Raises:
            ValueError: If the images do not have the network's shape.
        """
        return self.run_routed(self._images(inputs))[:2]

    def run_routed(
        self,
        images: tf.Tensor,
        routing: str | None = None,
        steps: Sequence[int] | None = None,
        thresholds: Sequence[float] | None = None,
        run_last: bool = True,
        trunk: tuple | None = None,
        start: tuple | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Runs a batch by any routing, and returns where each image started and ended.

        `keras_dsnet.models.costs.dynamic_madds` counts the costs from this.

        Args:
            images: Tensor `[batch, height, width, 3]` in the compute dtype of the network.
            routing: "gate", "confidence" or "gate+confidence". Defaults to the network's.
            steps: Tuple of ints. Defaults to the network's `confidence_steps`.
            thresholds: Tuple of floats. Defaults to the network's, or to 0.7 each if `steps` are
                given.
            run_last: See `SectionRunner.route_by_confidence`.
            trunk: Result of section 0, where it is known, so that several routings share it.
            start: `(outputs, paths)` of routing by the gate, where they are known.

        Returns:
            `(outputs, paths, starts)`: `[batch, classes]`, logits before any activation, and int32
            `[batch, num_gates]`, the path of the outputs and the path that ran first.

        Raises:
            ValueError: If `routing` needs a classifier that the network does not have, or steps or
                thresholds are wrong.
        """
        routing = check_routing(routing or self.routing, self.include_top)
        if routing == "gate":
            channels = None if self.include_top else self.output_shape[-1]
            outputs, paths = self._runner.route(images, self.gate_candidates(), channels, trunk)
            return outputs, paths, paths
        steps, thresholds = self.resolve_steps(steps, thresholds)
        routes = None if routing == "confidence" else self.gate_candidates()
        return self._runner.route_by_confidence(
            images, steps, thresholds, routes, run_last, trunk, start
        )

    def _images(self, inputs):
        images = arguments.check_images(arguments.refuse_symbolic(inputs), self._image_shape)
        return tf.cast(tf.convert_to_tensor(images), self.compute_dtype)

    def run_sections(
        self,
        x: Any,
        path: Path | None,
        first: int = 0,
        last: Any = None,
        executor: Any = None,
        **kwargs: Any,
    ) -> tf.Tensor:
        """Runs sections `first` to `last` without tracing them, as the trainers do.

        Args:
            x: Input of section `first`.
            path: A `Path`, whose widths may be tensors. Not used if `executor` is given.
            first: Int.
            last: Int, inclusive. Defaults to the last section.
            executor: The executor to run. Defaults to a `SlicedExecutor` of `path`.
            **kwargs: Further arguments of the `SlicedExecutor`.

        Returns:
            Features, or the logits of the last section, before any activation.

        Raises:
            ValueError: If a call would refuse the images.
        """
        if first == 0:
            x = arguments.check_images(x, self._image_shape)
        return self._runner.run(x, path, first, last, executor, **kwargs)

    def run_section(self, section: int, before: Any, after: tuple, x: Any, **kwargs: Any) -> tuple:
        """Runs one section at inference; see `SectionRunner.run_section`."""
        return self._runner.run_section(section, before, after, x, **kwargs)

    def run_rest(self, width: int, x: Any) -> tf.Tensor:
        """Runs all sections after the first along the path of one width, as inference does."""
        return self._runner.run_rest(width, x)[0]

    def run_any_width(self, first: int, x: Any, path: Path) -> tf.Tensor:
        """Runs sections by one trace for all paths; see `SectionRunner.run_any_width`."""
        return self._runner.run_any_width(first, x, path)

    def resolve_path(self, path: PathLike) -> Path:
        """Returns the `Path` that the argument `path` of a call stands for.

        Args:
            path: See `Call arguments`.

        Raises:
            ValueError: If the network does not have this path.
        """
        if isinstance(path, Path):
            return check_path(path, self.num_gates, self.num_widths)
        return resolve_path(path, self.num_gates, self.num_widths, self.spec.has_wide_front)

    @property
    def sections(self) -> tuple:
        """The topology: tuple of tuples of `Step`, split after every slimming gate."""
        return self._runner.sections

    @property
    def slimming_gates(self) -> list:
        """The gates with a slimming head, in order."""
        return list(self._runner.slimming_gates)

    @property
    def trace_count(self) -> int:
        """Number of sections traced so far, each at one width."""
        return self._runner.trace_count

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The name of each class by its index, a tuple of str or None. Settable."""
        return self._class_names

    @class_names.setter
    def class_names(self, names: Sequence[str] | None) -> None:
        self._class_names = check_class_names(names, self.classes)

    def decode_predictions(self, probabilities: Any, top: int = 5) -> list:
        """Names the most probable classes of each image with the network's `class_names`.

        Args:
            probabilities: `[batch, classes]`.
            top: Int, number of classes per image.

        Returns:
            See `keras_dsnet.applications.ds_mobilenet.decode_predictions`.

        Raises:
            ValueError: If `probabilities` have another number of classes, or the network has no
                class names and its classes are not ImageNet's 1000.
        """
        check_number_of_classes(probabilities, self.classes)
        return decode_predictions(probabilities, top, self.class_names)

    def costs(self, path: PathLike, input_shape: Sequence[int] | None = None) -> CostCounter:
        """Returns a `CostCounter` with the costs of one image along a path.

        Args:
            path: See `Call arguments`.
            input_shape: `(height, width, 3)`. Defaults to the network's.

        Raises:
            ValueError: If the size of the images is open, or `input_shape` contradicts the
                network's.
        """
        shape = arguments.resolve_image_shape(input_shape, self._image_shape)
        return count_costs(self.sections, self.resolve_path(path), shape)

    def madds(
        self, path: PathLike, input_shape: Sequence[int] | None = None, include_pooling: bool = True
    ) -> int:
        """Returns the number of multiply-adds of one image along a path.

        Args:
            path: See `Call arguments`.
            input_shape: `(height, width, 3)`. Defaults to the network's.
            include_pooling: Bool, whether the input elements of every average pool count too, as in
                the figures of the paper. False counts only convolutions and linear layers.

        Returns:
            Int. The slimming heads do not run on a fixed path and are not counted.
            `costs(path).slimming` holds their multiply-adds.
        """
        cost = self.costs(path, input_shape)
        return cost.madds + cost.pooling * include_pooling

    def width_table(self, input_shape: Sequence[int] | None = None) -> list[dict]:
        """Returns one row per width, used at all gates.

        Args:
            input_shape: `(height, width, 3)`. Defaults to the network's.

        Returns:
            List of dicts with the keys "path", "rho", "channels", "parameters" and "madds".

        Raises:
            ValueError: If `input_shape` is wrong, or missing although the network takes images of
                any size.
        """
        return width_table(self, input_shape)

    def subnetwork(self, path: PathLike, fold_batch_norm: bool = False) -> keras.Model:
        """Returns one sub-network as a plain Keras model of stock layers.

        Args:
            path: See `Call arguments`.
            fold_batch_norm: Bool, whether batch normalisation is folded into the convolutions
                before it.

        Returns:
            `keras.Model` that takes preprocessed images `[batch, height, width, 3]` and returns the
            outputs of `call` with this path.

        Raises:
            ValueError: If the network does not have the path.
        """
        return plain_subnetwork(self, self.resolve_path(path), fold_batch_norm)

    def export(
        self, filepath: Any, format: str = "tf_saved_model", verbose: Any = None, **options: Any
    ) -> Any:
        """Exports the network for use without this package.

        Args:
            filepath: Path of the file or folder.
            format: "litert" writes one TFLite file that routes each image by `routing`; see
                `keras_dsnet.export.export_routed` for its options. Any other format of
                `keras.Model.export` holds the dynamic network.
            verbose: Bool, whether progress is logged. Defaults to True.
            **options: Options of the format.

        Returns:
            For "litert" a description of the file; see `export_routed`.

        Raises:
            ValueError: If the options do not fit, or the format cannot hold a network that chooses
                its path. `subnetwork(path)` returns a plain model for such formats.
            ImportError: If a package that the format needs is not installed.
        """
        if format == "litert":
            from keras_dsnet.export import export_routed

            return export_routed(self, filepath, verbose=verbose is not False, **options)
        return serialization.keras_export(self, filepath, format, verbose, **options)

    def save_own_variables(self, store: Any) -> None:
        serialization.save_facts(self, store)

    def load_own_variables(self, store: Any) -> None:
        serialization.load_facts(self, store)

    def load_weights(self, filepath: Any, skip_mismatch: bool = False, **kwargs: Any) -> None:
        before = self.get_config()
        serialization.check_weights_fit(self, filepath, skip_mismatch)
        try:
            super().load_weights(filepath, skip_mismatch=skip_mismatch, **kwargs)
        except Exception:
            # Keras reads the settings of the file before the layers, which may not fit.
            serialization.restore_facts(self, before)
            raise
        if str(filepath).endswith((".h5", ".hdf5")) and not str(filepath).endswith(".weights.h5"):
            serialization.load_facts_of_h5_model(self, filepath)

    def get_config(self) -> dict:
        return {
            "spec": spec_config(self.spec),
            "input_shape": self._image_shape,
            "classes": self.classes,
            "include_top": self.include_top,
            "pooling": self.pooling,
            "classifier_activation": self.classifier_activation,
            **self.routing_config(),
            "class_names": self.class_names,
            "normalization": self.normalization.get_config(),
            "crop_fraction": self.crop_fraction,
            "name": self.name,
            "trainable": self.trainable,
            "frozen_layers": tuple(x.name for x in self.supernet_layers if not x.trainable),
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config: dict) -> "DynamicSlimmableNetwork":
        config = dict(config)
        # Older files have no such entry: a frozen network was frozen as a whole.
        frozen_layers = config.pop("frozen_layers", None)
        network = cls(**{**config, "spec": spec_from_config(config["spec"])})
        network._freeze(network.trainable, frozen_layers)
        return network

    def _freeze(self, trainable, frozen_layers=None):
        """Sets which layers train: all or none, or all except `frozen_layers`, a list of names."""
        self.trainable = trainable
        # Keras passes `trainable` on only when it changes, so every layer is set here.
        for layer in self.supernet_layers:
            layer.trainable = (
                trainable if frozen_layers is None else layer.name not in frozen_layers
            )


# Keras's older `.h5` files name the class of a whole model without its package.
keras.saving.get_custom_objects()["DynamicSlimmableNetwork"] = DynamicSlimmableNetwork
