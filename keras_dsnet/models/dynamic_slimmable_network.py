"""The model class: one supernet, its sub-networks, and the gates that choose among them."""

import json

import h5py
import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.models.arguments import (
    activation_name,
    check_classes,
    check_flag,
    check_image_shape,
    check_images,
    check_policy,
    check_pooling,
    inside_a_call,
    refuse_training,
    resolve_image_shape,
)
from keras_dsnet.models.costs import count_costs, features_shape, width_table
from keras_dsnet.models.path import Path, RoutingSpace, resolve_path
from keras_dsnet.models.predictions import check_class_names, decode_predictions
from keras_dsnet.models.preprocessing import as_normalization
from keras_dsnet.models.routing import Router, SectionRunner
from keras_dsnet.models.spec import NetworkSpec, spec_config, spec_from_config
from keras_dsnet.models.subnetwork import plain_subnetwork
from keras_dsnet.models.topology import walk


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
        pooling: without the top, "avg" or "max": the outputs are the last features' mean or
            maximum over height and width; None: the features themselves.
        **kwargs: of `keras.Model`; `dtype` may be a policy such as "mixed_bfloat16".

    Call arguments:
        inputs: float32 `[batch, height, width, 3]`, preprocessed, of the size in `input_shape`.
        path: int, tuple of ints (one per gate; or an array, a row of what `route` returns),
            "slimmest", "widest" or, where the front has wider options, "largest"; or a `Path`,
            whose entries may be int32 scalar tensors inside a traced function. None: the gates
            choose a path for each image, and only that is computed.
        training: bool; True needs a path. A network whose variables are all frozen routes inside
            of a model in training too: it is a feature extractor.

    Returns:
        float32 `[batch, classes]`; without the top `[batch, height, width, channels]`, or with
        `pooling` `[batch, channels]`, in the dtype that the network computes in.

    Raises:
        ValueError: on an argument of another type or value, a path that the network does not have,
            images of another size or number of channels than `input_shape`, or `training` without a
            path.
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
        pooling=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not isinstance(spec, NetworkSpec):
            raise ValueError(
                "`spec` must be a NetworkSpec, such as keras_dsnet.models.MobileNetSpec(). "
                f"Received: spec={spec!r}"
            )
        check_policy(self.dtype_policy)
        self.spec = spec
        self.classes = check_classes(classes)
        self.include_top = check_flag("include_top", include_top)
        self.pooling = check_pooling(pooling, self.include_top)
        self.classifier_activation = activation_name(classifier_activation)
        self._image_shape = check_image_shape(input_shape)
        self.class_names = class_names
        self.normalization = normalization
        steps = spec.build(
            self._image_shape[-1], self.classes, self.include_top, self.dtype_policy, self.pooling
        )
        # Keras finds layers, and names them in weights files, by attributes that are layers or
        # lists of them; the steps, which hold them too, stay behind an object that it leaves alone.
        self.supernet_layers = [step.layer for step in walk(steps) if step.layer is not None]
        self._runner = SectionRunner(steps, self._image_shape)
        self._router = Router(self)
        self._routing = RoutingSpace(self.num_widths, routes)
        self.gates_trained = gates_trained
        self.supports_jit = False
        self.built = True
        if not self.trainable:
            # There was no layer yet that Keras could have told.
            self._freeze(trainable=False)

    def _freeze(self, trainable, frozen_layers=None):
        """Sets which layers train: all or none, or those that are not `frozen_layers`, by name."""
        self.trainable = trainable
        # One by one, since setting what is already set changes nothing further down.
        for layer in self.supernet_layers:
            layer.trainable = (
                trainable if frozen_layers is None else layer.name not in frozen_layers
            )

    @property
    def input_shape(self):
        """`(None, height, width, channels)`."""
        return (None, *self._image_shape)

    @property
    def output_shape(self):
        """`(None, classes)`; without the top that of the outputs of the widest of `routes`."""
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
        """The candidate widths of every gate: a tuple of ints, ascending; settable.

        A slimming head scores every width, and those outside of the routes are masked, so that
        routes may change without new weights. Trained gates know the routes of their training only:
        another choice warns once.
        """
        return self._routing.routes

    @routes.setter
    def routes(self, routes):
        self._routing.change_routes(routes)

    def replace_routes(self, routes):
        """Sets `routes` without the warning: for what trains the gates on them next.

        Args:
            routes: candidate widths, ascending.
        """
        self._routing.routes = routes

    def reset_gates(self):
        """Makes all widths routes and the gates untrained, as those of a new network are."""
        self._routing.gates_trained = False
        self._routing.routes = range(self.num_widths)

    @property
    def gates_trained(self):
        """Whether the slimming heads were trained; settable, saved with the weights."""
        return self._routing.gates_trained

    @gates_trained.setter
    def gates_trained(self, trained):
        self._routing.gates_trained = check_flag("gates_trained", trained)

    @property
    def class_names(self):
        """The name of each class, by its index: a tuple of str, or None; settable."""
        return self._class_names

    @class_names.setter
    def class_names(self, names):
        self._class_names = check_class_names(names, self.classes)

    @property
    def normalization(self):
        """The `Normalization` of images before they come here; settable, None: ImageNet's."""
        return self._normalization

    @normalization.setter
    def normalization(self, normalization):
        self._normalization = as_normalization(normalization)

    @property
    def trace_count(self):
        """How many sections were traced so far, at one width each."""
        return self._runner.trace_count

    def preprocess_input(self, images):
        """Normalises images by the network's own `normalization`.

        Args:
            images: as of `Normalization`: RGB, 0 to 255.

        Returns:
            float32 of the same shape.
        """
        return self.normalization(images)

    def decode_predictions(self, probabilities, top=5):
        """Names the most probable classes of each image by the network's own `class_names`.

        Args:
            probabilities: `[batch, classes]`.
            top: int.

        Returns:
            As of `keras_dsnet.applications.ds_mobilenet.decode_predictions`.

        Raises:
            ValueError: `probabilities` are of another number of classes, or the network knows no
                names and its classes are not ImageNet's 1000.
        """
        shape = np.shape(probabilities)
        if len(shape) == 2 and shape[1] != self.classes:
            raise ValueError(
                f"`probabilities` must be of the network's {self.classes} classes. "
                f"Received: probabilities of shape {tuple(shape)}"
            )
        return decode_predictions(probabilities, top, self.class_names)

    def __call__(self, inputs, *args, path=None, **kwargs):
        inputs = check_images(inputs, self._image_shape)
        if path is None and not args and not inside_a_call():
            refuse_training(kwargs.get("training"))
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
            # A model around the network passes on that it is in training, whatever the network was
            # called with.
            refuse_training(training and any(v.trainable for v in self.variables))
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
            x = check_images(x, self._image_shape)
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
        images = check_images(inputs, self._image_shape)
        return tf.cast(tf.convert_to_tensor(images), self.compute_dtype)

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
            ValueError: the size of the images is open, or `input_shape` contradicts the model's.
        """
        shape = resolve_image_shape(input_shape, self._image_shape)
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
        # So that a file of weights says what network it is for. What is frozen is not of weights.
        config = {**self.get_config(), "trainable": True, "frozen_layers": ()}
        store["config"] = np.frombuffer(json.dumps(config).encode(), "uint8")

    def load_own_variables(self, store):
        config = json.loads(bytes(np.array(store["config"]))) if "config" in store else {}
        routes = [int(width) for width in store["routes"]]
        trained = bool(np.array(store["gates_trained"]))
        self._take_facts({**config, "routes": routes, "gates_trained": trained})

    def load_weights(self, filepath, skip_mismatch=False, **kwargs):
        super().load_weights(filepath, skip_mismatch=skip_mismatch, **kwargs)
        if str(filepath).endswith((".h5", ".hdf5")) and not str(filepath).endswith(".weights.h5"):
            # A whole model in Keras's older format has its facts in its config only.
            with h5py.File(filepath) as file:
                self._take_facts(json.loads(file.attrs.get("model_config", "{}")).get("config", {}))

    def _take_facts(self, config):
        """Takes what the config of a file says of its weights.

        A gate that was trained for other classes is a new one here.
        """
        other_classes = config.get("classes", self.classes) != self.classes
        if other_classes and self.include_top:
            self.reset_gates()
        elif "routes" in config:
            try:
                self.replace_routes(config["routes"])
            except ValueError as error:
                raise ValueError(
                    f"The weights are of a network with more widths than the {self.num_widths} of "
                    f"this one: {error}"
                ) from error
            self.gates_trained = config["gates_trained"]
        if config.get("class_names") is not None and not other_classes:
            self.class_names = config["class_names"]
        if config.get("normalization") is not None:
            self.normalization = config["normalization"]

    def get_config(self):
        return {
            "spec": spec_config(self.spec),
            "input_shape": self._image_shape,
            "classes": self.classes,
            "include_top": self.include_top,
            "pooling": self.pooling,
            "classifier_activation": self.classifier_activation,
            "routes": self.routes,
            "gates_trained": self.gates_trained,
            "class_names": self.class_names,
            "normalization": self.normalization.get_config(),
            "name": self.name,
            "trainable": self.trainable,
            "frozen_layers": tuple(x.name for x in self.supernet_layers if not x.trainable),
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        # Files of before have none: a network that was frozen was so as a whole.
        frozen_layers = config.pop("frozen_layers", None)
        network = cls(**{**config, "spec": spec_from_config(config["spec"])})
        network._freeze(network.trainable, frozen_layers)
        return network


# Keras's older `.h5` files name the class of a whole model without its package.
keras.saving.get_custom_objects()["DynamicSlimmableNetwork"] = DynamicSlimmableNetwork


_FORMATS = ("tf_saved_model", "onnx", "openvino", "torch")


def keras_export(network, filepath, format, verbose=None, **options):
    """Writes what `keras.Model.export` makes of a network, its gates included.

    Args:
        network: a `DynamicSlimmableNetwork`.
        filepath: of the file or folder.
        format: "tf_saved_model", "onnx", "openvino" or "torch".
        verbose: bool; None: Keras's default.
        **options: of the format.

    Raises:
        ValueError: on another format, or one that cannot hold a network that chooses its path.
        ImportError: where the format needs a package that is not installed.
        OSError: the file cannot be written.
    """
    if format not in _FORMATS:
        raise ValueError(
            f"`format` must be 'litert' or one of {', '.join(map(repr, _FORMATS))}. "
            f"Received: format={format!r}"
        )
    # Keras knows it only of a model that was called.
    images = keras.InputSpec(dtype="float32", shape=network.input_shape)
    options.setdefault("input_signature", [images])
    try:
        keras.Model.export(network, str(filepath), format=format, verbose=verbose, **options)
    except OSError:
        raise
    except ImportError as error:
        raise ImportError(
            f"format={format!r} needs a package that is not installed: {error}"
        ) from error
    except Exception as error:
        line = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(
            f"Keras cannot export this network to format={format!r}: {line.rstrip('.')}. Where "
            "a format cannot hold a network that chooses its path, export one path: "
            "`model.subnetwork(path).export(...)`"
        ) from error
