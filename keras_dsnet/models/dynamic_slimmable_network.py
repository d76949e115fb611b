"""The model class: one supernet, its sub-networks, and the gates that choose among them."""

import dataclasses
import json
import warnings

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common.stateless_scope import in_stateless_scope

from keras_dsnet.models.cost_counter import CostCounter
from keras_dsnet.models.families import find_family
from keras_dsnet.models.path import Path, check_routes, resolve_path
from keras_dsnet.models.plain_executor import plain_subnetwork
from keras_dsnet.models.router import Router
from keras_dsnet.models.sliced_executor import SlicedExecutor
from keras_dsnet.models.topology import split_sections, walk
from keras_dsnet.models.traced_sections import TracedSections

# What `keras.Model.export` knows beside "litert".
_KERAS_FORMATS = ("tf_saved_model", "onnx", "openvino", "torch")


@keras.saving.register_keras_serializable(package="keras_dsnet")
class DynamicSlimmableNetwork(keras.Model):
    """A network that chooses, image by image, how many of its filters to run.

    Args:
        spec: a `NetworkSpec`: what the network is made of, as `MobileNetSpec`.
        input_shape: `(height, width, 3)`; height and width may be None.
        classes: int.
        include_top: bool: end with pool and classifier. Without, the outputs are the last features,
            for a routed batch padded with zeros to the widest of its routes.
        classifier_activation: name of a Keras activation; None: logits.
        routes: candidate widths of every gate; None: all widths.
        **kwargs: of `keras.Model`; `dtype` may be a policy such as "mixed_bfloat16".

    Call arguments:
        inputs: float32 `[batch, height, width, 3]`, preprocessed.
        path: int, tuple of ints (one per gate), "slimmest", "widest" or, where the front has wider
            options, "largest"; or a `Path`, whose entries may be int32 scalar tensors inside a
            traced function. None: the gates choose a path for each image, and only that is
            computed.
        training: bool; needs a path.

    Returns:
        `[batch, classes]`.

    Raises:
        ValueError: on a path that the network does not have.
    """

    def __init__(
        self,
        spec,
        input_shape=(224, 224, 3),
        classes=1000,
        include_top=True,
        classifier_activation="softmax",
        routes=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.spec = spec
        self.classes = classes
        self.include_top = include_top
        self.classifier_activation = classifier_activation or "linear"
        self._image_shape = tuple(input_shape)
        self._steps = _Hidden(
            spec.build(self._image_shape[-1], classes, include_top, self.dtype_policy)
        )
        # Keras finds layers, and names them in weights files, by attributes.
        self.supernet_layers = [s.layer for s in walk(self._steps.value) if s.layer is not None]
        self._sections = _Hidden(split_sections(self._steps.value))
        self._traced = _Hidden(TracedSections(self))
        self._router = _Hidden(Router(self))
        self._routes = check_routes(
            range(self.num_widths) if routes is None else routes, self.num_widths
        )
        self._gates_trained = False
        self._warned = False
        self.supports_jit = False
        self.built = True

    @property
    def input_shape(self):
        """`(None, height, width, channels)`."""
        return (None, *self._image_shape)

    @property
    def sections(self):
        """The topology: tuple of tuples of `Step`, cut behind every slimming gate."""
        return self._sections.value

    @property
    def slimming_gates(self):
        """The gates with a slimming head, in order."""
        return [step.layer for step in self._steps.value if step.is_slimming_gate]

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
        return self._routes

    @routes.setter
    def routes(self, routes):
        self._routes = check_routes(routes, self.num_widths)

    @property
    def gates_trained(self):
        """Whether the slimming heads were trained; settable, saved with the weights."""
        return self._gates_trained

    @gates_trained.setter
    def gates_trained(self, trained):
        self._gates_trained = bool(trained)

    @property
    def trace_count(self):
        """How many sections were traced so far, at one width each."""
        return self._traced.value.trace_count

    def __call__(self, inputs, *args, path=None, **kwargs):
        # Here and not in `call`: Keras would make a tensor of a numpy integer on the way.
        if path is not None:
            kwargs["path"] = self.resolve_path(path)
        return super().__call__(inputs, *args, **kwargs)

    def resolve_path(self, path):
        """Returns `path` as a `Path`; see `Call arguments`."""
        if isinstance(path, Path):
            return path
        return resolve_path(path, self.num_gates, self.num_widths, self.spec.wide_front)

    def call(self, inputs, path=None, training=False):
        if path is None:
            if training:
                raise ValueError(
                    "Training needs a path: train with `keras_dsnet.training.SupernetTrainer`, or "
                    "call `model(x, path=..., training=True)`. Received: path=None"
                )
            outputs = self._router.value(inputs, self._current_routes())[0]
        else:
            outputs = self._run_path(inputs, path, training)
        if not self.include_top:
            return outputs
        # Softmax of float16 logits loses digits that users compare.
        logits = tf.cast(outputs, tf.float32)
        return keras.activations.get(self.classifier_activation)(logits)

    def _run_path(self, inputs, path, training):
        static = all(isinstance(width, int) for width in path.widths)
        # A traced function holds the variables themselves; a stateless scope has others.
        if training or not static or not tf.executing_eagerly() or in_stateless_scope():
            return self.run_sections(inputs, path, training=training)
        rows = list(zip(path.widths, path.statistics))
        for section, (before, after) in enumerate(zip([None, *rows], rows)):
            inputs, _ = self._traced.value(section, before, after, inputs)
        return inputs

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
        """
        executor = executor or SlicedExecutor(path, **kwargs)
        last = self.num_gates if last is None else last
        for section in range(first, last + 1):
            x = executor.run(self.sections[section], x)
        return x

    def run_section(self, section, before, after, x):
        """Runs one section at inference: `(outputs, scores)`; see `TracedSections`."""
        if tf.executing_eagerly() and not in_stateless_scope():
            return self._traced.value(section, before, after, x)
        width, row = after
        path = Path((width,) * (section + 1), (row,) * (section + 1))
        executor = SlicedExecutor(path)
        outputs = executor.run(self.sections[section], x)
        return outputs, (executor.scores or [None])[0]

    def run_any_width(self, first, x, path):
        """Runs the front (`first=0`) or the rest (1) along any path by one trace for all."""
        return self._traced.value.any_width(first, x, path)

    def _current_routes(self):
        if self.gates_trained:
            return self.routes
        if not self._warned:
            self._warned = True
            warnings.warn(
                "The gates of this network are not trained: every image takes the widest route "
                f"({self.routes[-1]}). Train them with keras_dsnet.training.GateTrainer, or pass "
                "`path=`.",
                stacklevel=3,
            )
        return self.routes[-1:]

    def route(self, inputs):
        """Returns the widths that the gates choose.

        Args:
            inputs: float32 `[batch, height, width, 3]`, preprocessed.

        Returns:
            int32 `[batch, num_gates]`.
        """
        inputs = tf.cast(tf.convert_to_tensor(inputs), self.compute_dtype)
        return self._router.value.choose(inputs, self._current_routes())

    def run_dynamic(self, inputs):
        """Routes a batch: `(logits [batch, classes], widths int32 [batch, num_gates])`."""
        inputs = tf.cast(tf.convert_to_tensor(inputs), self.compute_dtype)
        return self._router.value(inputs, self._current_routes())

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
        """Returns the `CostCounter` of a path at an input shape; see `madds`."""
        shape = tuple(input_shape or self._image_shape)
        if None in shape[:2]:
            raise ValueError(
                "MAdds need the image's size: pass `input_shape=(height, width, 3)`. "
                f"Received: input_shape={shape}"
            )
        counter = CostCounter(self.resolve_path(path))
        for steps in self.sections:
            shape = counter.run(steps, shape)
        return counter

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
        """Returns a row per width: its path, rho, channels, parameters and MAdds."""
        rows = []
        for width in range(self.num_widths):
            cost = self.costs(width, input_shape)
            rows.append(
                {
                    "path": width,
                    "rho": self.spec.ratios[width],
                    "channels": self.spec.gated_channels[width],
                    "parameters": cost.parameters,
                    "madds": cost.madds + cost.pooling,
                }
            )
        return rows

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
        if format not in _KERAS_FORMATS:
            raise ValueError(
                f"`format` must be 'litert' or one of {', '.join(map(repr, _KERAS_FORMATS))}. "
                f"Received: format={format!r}"
            )
        # Keras knows it only of a model that was called.
        images = keras.InputSpec(dtype="float32", shape=self.input_shape)
        options.setdefault("input_signature", [images])
        try:
            return super().export(str(filepath), format=format, verbose=verbose, **options)
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
            "spec": {"family": type(self.spec).__name__, **dataclasses.asdict(self.spec)},
            "input_shape": self._image_shape,
            "classes": self.classes,
            "include_top": self.include_top,
            "classifier_activation": self.classifier_activation,
            "routes": self.routes,
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config):
        spec = dict(config["spec"])
        return cls(**{**config, "spec": find_family(spec.pop("family")).from_dict(spec)})


class _Hidden:
    """Keeps an attribute out of the sight of Keras's tracking."""

    def __init__(self, value):
        self.value = value
