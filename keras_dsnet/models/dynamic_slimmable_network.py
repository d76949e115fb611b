"""The model class: one supernet, its sub-networks, and the gates that choose among them."""

import json

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.models.cost_counter import count_costs, features_shape
from keras_dsnet.models.families import spec_config, spec_from_config
from keras_dsnet.models.keras_export import keras_export
from keras_dsnet.models.path import Path, resolve_path
from keras_dsnet.models.plain_executor import plain_subnetwork
from keras_dsnet.models.preprocessing import Normalization
from keras_dsnet.models.router import Router
from keras_dsnet.models.routing_space import RoutingSpace
from keras_dsnet.models.section_runner import SectionRunner
from keras_dsnet.models.topology import walk
from keras_dsnet.models.width_table import width_table


@keras.saving.register_keras_serializable(package="keras_dsnet")
class DynamicSlimmableNetwork(keras.Model):
    """A network that chooses, image by image, how many of its filters to run.

    Args:
        spec: a `NetworkSpec`: what the network is made of, as `MobileNetSpec`.
        input_shape: `(height, width, 3)`; height and width may be None.
        classes: int.
        include_top: bool: end with pool and classifier. Without, the outputs are the last features,
            those of a routed batch padded with zeros to the channels of the widest of `routes`.
        classifier_activation: name of a Keras activation; None: logits.
        routes: candidate widths of every gate; None: all widths.
        gates_trained: bool: whether the slimming heads were trained to choose.
        class_names: a name for each class, by its index; None: not known.
        normalization: the `Normalization` that images get before they come here, which exported
            files repeat; None: ImageNet's.
        **kwargs: of `keras.Model`; `dtype` may be a policy such as "mixed_bfloat16".

    Call arguments:
        inputs: float32 `[batch, height, width, 3]`, preprocessed, of the size in `input_shape`.
        path: int, tuple of ints (one per gate; or an array, a row of what `route` returns),
            "slimmest", "widest" or, where the front has wider options, "largest"; or a `Path`,
            whose entries may be int32 scalar tensors inside a traced function. None: the gates
            choose a path for each image, and only that is computed.
        training: bool; needs a path.

    Returns:
        float32 `[batch, classes]`; without the top `[batch, height, width, channels]` in the dtype
        that the network computes in.

    Raises:
        ValueError: on a path that the network does not have, images of another size or number of
            channels than `input_shape`, or `training` without a path.
    """

    def __init__(
        self,
        spec,
        input_shape=(224, 224, 3),
        classes=1000,
        include_top=True,
        classifier_activation="softmax",
        routes=None,
        gates_trained=False,
        class_names=None,
        normalization=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.spec = spec
        self.classes = classes
        self.include_top = include_top
        self.classifier_activation = classifier_activation or "linear"
        self._image_shape = tuple(input_shape)
        steps = spec.build(self._image_shape[-1], classes, include_top, self.dtype_policy)
        # Keras finds layers, and names them in weights files, by attributes that are layers or
        # lists of them; the steps, which hold them too, stay behind an object that it leaves alone.
        self.supernet_layers = [step.layer for step in walk(steps) if step.layer is not None]
        self._runner = SectionRunner(steps, self._image_shape)
        self._router = Router(self)
        self._routing = RoutingSpace(self.num_widths, routes)
        self.gates_trained = gates_trained
        self.class_names = class_names
        self.normalization = normalization
        self.supports_jit = False
        self.built = True

    @property
    def input_shape(self):
        """`(None, height, width, channels)`."""
        return (None, *self._image_shape)

    @property
    def output_shape(self):
        """`(None, classes)`; without the top that of features of the widest of `routes`."""
        if self.include_top:
            return (None, self.classes)
        path = self.resolve_path((self.routes[-1],) * self.num_gates)
        return (None, *features_shape(self.sections, path, self._image_shape))

    @property
    def sections(self):
        """The topology: tuple of tuples of `Step`, cut behind every slimming gate."""
        return self._runner.sections

    @property
    def slimming_gates(self):
        """The gates with a slimming head, in order."""
        return [step.layer for step in self._runner.steps if step.is_slimming_gate]

    @property
    def num_gates(self):
        """How many slimming heads there are: the length of a path."""
        return self.spec.num_gates

    @property
    def num_widths(self):
        """How many widths each gate can choose from."""
        return self.spec.num_widths

    @property
    def routes(self):
        """The candidate widths of every gate: a tuple of ints, ascending; settable."""
        return self._routing.routes

    @routes.setter
    def routes(self, routes):
        self._routing.routes = routes

    @property
    def gates_trained(self):
        """Whether the slimming heads were trained; settable, saved with the weights."""
        return self._routing.gates_trained

    @gates_trained.setter
    def gates_trained(self, trained):
        self._routing.gates_trained = bool(trained)

    @property
    def class_names(self):
        """The name of each class, by its index: a tuple of str, or None; settable."""
        return self._class_names

    @class_names.setter
    def class_names(self, names):
        names = None if names is None else tuple(map(str, names))
        if names is not None and len(names) != self.classes:
            raise ValueError(
                f"`class_names` must name each of the {self.classes} classes. "
                f"Received: {len(names)} names"
            )
        self._class_names = names

    @property
    def normalization(self):
        """The `Normalization` of images before they come here; settable, None: ImageNet's."""
        return self._normalization

    @normalization.setter
    def normalization(self, normalization):
        if isinstance(normalization, dict):
            normalization = Normalization(**normalization)
        self._normalization = normalization or Normalization()

    @property
    def trace_count(self):
        """How many sections were traced so far, at one width each."""
        return self._runner.trace_count

    def __call__(self, inputs, *args, path=None, **kwargs):
        self._check_images(inputs)
        if path is None and not args:
            _refuse_training(kwargs.get("training"))
        # Here and not in `call` alone: Keras would make a tensor of a numpy integer on the way. As
        # plain values, since a functional model that calls the network writes them into its config.
        if path is not None:
            resolved = self.resolve_path(path)
            kwargs["path"] = path if isinstance(path, (str, Path)) else resolved.gates
        return super().__call__(inputs, *args, **kwargs)

    def resolve_path(self, path):
        """Returns `path` as a `Path`; see `Call arguments`.

        Args:
            path: what a call takes as `path`.

        Raises:
            ValueError: the network does not have it.
        """
        if isinstance(path, Path):
            return path
        return resolve_path(path, self.num_gates, self.num_widths, self.spec.wide_front)

    def call(self, inputs, path=None, training=False):
        if path is None:
            # Keras may know only here that a layer around the network is in training.
            _refuse_training(training)
            outputs = self._router(inputs, self._routing.candidates())[0]
        else:
            outputs = self._runner.run_path(inputs, self.resolve_path(path), training)
        if not self.include_top:
            return outputs
        # Softmax of float16 logits loses digits that users compare.
        logits = tf.cast(outputs, tf.float32)
        return keras.activations.get(self.classifier_activation)(logits)

    def run_sections(self, x, path, first=0, last=None, executor=None, **kwargs):
        """Runs sections `first` to `last` (None: the last) and returns features or logits.

        What trainers are built from: it traces nothing by itself and takes widths as tensors.

        Args:
            x: input of the first of these sections.
            path: a `Path`.
            first: int.
            last: int or None, inclusive.
            executor: an executor to run with; None: a `SlicedExecutor` of `path`.
            **kwargs: of the `SlicedExecutor`.

        Returns:
            Features, or the last section's logits, before any activation.

        Raises:
            ValueError: on images that a call would refuse.
        """
        if first == 0:
            self._check_images(x)
        return self._runner.run(x, path, first, last, executor, **kwargs)

    def run_section(self, section, before, after, x):
        """Runs one section at inference: `(outputs, scores)`; see `TracedSections`."""
        return self._runner.run_section(section, before, after, x)

    def run_any_width(self, first, x, path):
        """Runs the front (`first=0`) or the rest (1) along any path by one trace for all."""
        return self._runner.run_any_width(first, x, path)

    def route(self, inputs):
        """Returns the widths that the gates choose.

        Args:
            inputs: float32 `[batch, height, width, 3]`, preprocessed.

        Returns:
            int32 `[batch, num_gates]`.

        Raises:
            ValueError: on images of another size or number of channels than `input_shape`.
        """
        return self._router.choose(self._images(inputs), self._routing.candidates())

    def run_dynamic(self, inputs):
        """Routes a batch: `(logits [batch, classes], widths int32 [batch, num_gates])`.

        Args:
            inputs: as of `route`.
        """
        return self._router(self._images(inputs), self._routing.candidates())

    def _images(self, inputs):
        self._check_images(inputs)
        return tf.cast(tf.convert_to_tensor(inputs), self.compute_dtype)

    def _check_images(self, inputs):
        if not tf.TensorShape(self.input_shape).is_compatible_with(np.shape(inputs)):
            raise ValueError(
                "Images must be [batch, height, width, channels] with the network's "
                f"`input_shape={self._image_shape}`, where None stands for any size. "
                f"Received: images of shape {tuple(np.shape(inputs))}"
            )
        dtype = keras.backend.standardize_dtype(getattr(inputs, "dtype", "float32"))
        if not keras.backend.is_float_dtype(dtype):
            raise ValueError(
                "Images must be floats, as `preprocess_input` of the application makes them. "
                f"Received: images of dtype {dtype}"
            )

    def make_predict_function(self, force=False):
        # Eager, because only so a width that no image chose costs nothing at all; the sections
        # themselves are traced.
        if self.distribute_strategy.num_replicas_in_sync > 1:
            return super().make_predict_function(force)
        if self.predict_function is None or force:
            self.predict_function = self._predict_eagerly
        return self.predict_function

    def _predict_eagerly(self, data):
        outputs = [self.predict_step(batch) for batch in data]
        return outputs[0] if len(outputs) == 1 else tf.concat(outputs, 0)

    def costs(self, path, input_shape=None):
        """Returns the `CostCounter` of a path at an input shape; see `madds`.

        Args:
            path: as in a call.
            input_shape: `(height, width, 3)`; None: the model's.

        Raises:
            ValueError: the size of the images is open, or `input_shape` is no such tuple.
        """
        shape = input_shape or self._image_shape
        return count_costs(self.sections, self.resolve_path(path), shape)

    def madds(self, path, input_shape=None, include_pooling=True):
        """Returns the multiply-adds of one image along a path.

        Args:
            path: as in a call.
            input_shape: `(height, width, 3)`; None: the model's.
            include_pooling: bool: count the input elements of every average pool too, as the
                authors' figures do. False: convolutions and linear layers alone.

        Returns:
            int. The slimming heads, which a fixed path does not run, are not counted;
            `costs(path).slimming` is their share.
        """
        cost = self.costs(path, input_shape)
        return cost.madds + cost.pooling * include_pooling

    def width_table(self, input_shape=None):
        """Returns a row per width: its path, rho, channels, parameters and MAdds.

        Args:
            input_shape: `(height, width, 3)`; None: the model's.
        """
        return width_table(self, input_shape)

    def subnetwork(self, path, fold_batch_norm=False):
        """Returns one sub-network as a plain Keras model of stock layers.

        Args:
            path: as in a call.
            fold_batch_norm: bool: put batch normalisation into the convolutions before it.
        """
        return plain_subnetwork(self, self.resolve_path(path), fold_batch_norm)

    def export(self, filepath, format="tf_saved_model", verbose=None, **options):
        """Writes the network for use without this package.

        Args:
            filepath: of the file or folder.
            format: "litert": one TFLite file in which the gate routes each image; see
                `keras_dsnet.export.export_routed` for its options `routes`, `quantize`, `layout`,
                `representative_data`, `input_shape`, `input_type`. Any other: what
                `keras.Model.export` makes of the dynamic network.
            verbose: bool: print what is done; None: yes.
            **options: of the format.

        Returns:
            For "litert" what the file holds: see `export_routed`.

        Raises:
            ValueError: on options that do not fit, or a format that cannot hold a network that
                chooses; `subnetwork(path)` gives a plain model, which every format can hold.
            ImportError: where the format needs a package that is not installed.
        """
        if format == "litert":
            from keras_dsnet.export import export_routed

            return export_routed(self, filepath, verbose=verbose is not False, **options)
        return keras_export(self, filepath, format, verbose, **options)

    def save_own_variables(self, store):
        store["routes"] = np.array(self.routes, "int32")
        store["gates_trained"] = np.array(self.gates_trained)
        # So that a file of weights alone says what network it is for.
        store["config"] = np.frombuffer(json.dumps(self.get_config()).encode(), "uint8")

    def load_own_variables(self, store):
        self.routes = [int(width) for width in store["routes"]]
        self.gates_trained = bool(np.array(store["gates_trained"]))

    def get_config(self):
        return {
            "spec": spec_config(self.spec),
            "input_shape": self._image_shape,
            "classes": self.classes,
            "include_top": self.include_top,
            "classifier_activation": self.classifier_activation,
            "routes": self.routes,
            "gates_trained": self.gates_trained,
            "class_names": self.class_names,
            "normalization": self.normalization.get_config(),
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "spec": spec_from_config(config["spec"])})


def _refuse_training(training):
    if training:
        raise ValueError(
            "Training needs a path: train with `keras_dsnet.training.SupernetTrainer`, or call "
            "`model(x, path=..., training=True)`. Received: path=None"
        )
