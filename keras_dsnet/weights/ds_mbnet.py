"""Checkpoints of the authors' DS-MBNet, loaded into a `DSMobileNet`."""

import dataclasses
import os

import keras
import numpy as np

from keras_dsnet.layers import (
    DoubleHeadedGate,
    SlicedConv2D,
    SlicedDense,
    SlicedDepthwiseConv2D,
    SwitchableBatchNormalization,
)
from keras_dsnet.models import DynamicSlimmableNetwork
from keras_dsnet.models.topology import walk
from keras_dsnet.utils import UserError
from keras_dsnet.weights.torch_file import TorchFile

# The slimming head of the authors' code scores the four narrowest widths.
SLIMMING_ROWS = 4
_NAMES_SHOWN = 3


def load_checkpoint(
    model: DynamicSlimmableNetwork, path: str | os.PathLike, ema: bool | None = None
) -> None:
    """Loads a checkpoint of the authors' DS-MBNet into a DS-MobileNet of the same widths.

    The slimming head of the checkpoint scores four widths. `model.routes` becomes the four
    narrowest widths and `model.gates_trained` becomes True. The gate of the supernet that the
    authors released is not trained; set `model.gates_trained = False` after loading it.

    Args:
        model: `DynamicSlimmableNetwork` of the DS-MobileNet family, with sigmoid attention.
        path: Path of the checkpoint, a file that `torch.save` wrote.
        ema: Bool, whether to load the moving average of the weights instead of the weights.
            Defaults to the average if the checkpoint has one.

    Raises:
        OSError: The file cannot be opened.
        UserError: The file cannot be read, or its tensors are not those of the network. The
            network is then unchanged.
    """
    assign_tensors(model, read_checkpoint(path, ema), path)


def read_checkpoint(path: str | os.PathLike, ema: bool | None = None) -> dict[str, np.ndarray]:
    """Reads the weights of a checkpoint that `torch.save` wrote, without PyTorch.

    Args:
        path: Path of the file.
        ema: Bool, whether to read the moving average of the weights ("state_dict_ema") instead of
            the weights ("state_dict"). Defaults to the average if the checkpoint has one.

    Returns:
        Dict that maps the name of each tensor, without the prefix "module.", to a NumPy array.

    Raises:
        OSError: The file cannot be opened.
        UserError: The file is damaged or not a checkpoint, it lacks the requested weights, or a
            weight is NaN or infinite.
    """
    with TorchFile(path) as file:
        states = _state_dict(path, file.content, ema)
        return {
            name.removeprefix("module."): _read_finite(path, name, tensor)
            for name, tensor in states.items()
        }


def _state_dict(path, content, ema):
    content = content if isinstance(content, dict) else {}
    keys = {None: ("state_dict_ema", "state_dict"), True: ("state_dict_ema",)}
    for key in keys.get(ema, ("state_dict",)):
        if content.get(key):
            states = content[key]
            break
    else:
        # The file may hold the state dict itself.
        states = None if ema else content
    if not isinstance(states, dict) or not all(
        isinstance(name, str) and hasattr(tensor, "numpy") for name, tensor in states.items()
    ):
        states = None
    if not states:
        wanted = "state_dict_ema" if ema else "state_dict"
        raise UserError(
            f"the checkpoint {path} has no '{wanted}' of tensors; it holds "
            f"{_listed(content) or 'no dictionary'}"
        )
    return states


def _read_finite(path, name, tensor):
    array = tensor.numpy()
    # NumPy does not count bfloat16 as a float, so the kinds of the other dtypes are excluded.
    if array.dtype.kind not in "iub" and not np.all(np.isfinite(array.astype("float32"))):
        raise UserError(f"the checkpoint {path} has NaN or infinity in its tensor '{name}'")
    return array


def assign_tensors(
    model: DynamicSlimmableNetwork, tensors: dict[str, np.ndarray], path: str | os.PathLike
) -> None:
    """Assigns the tensors of a checkpoint; see `load_checkpoint`.

    Args:
        model: `DynamicSlimmableNetwork` of the DS-MobileNet family.
        tensors: Dict of arrays, as `read_checkpoint` returns it.
        path: Path of the checkpoint, for messages.

    Raises:
        UserError: The tensors are not those of the network. The network is then unchanged.
    """
    targets = mobilenet_tensors(model)
    _check_names(path, tensors, targets)
    _check_shapes(path, tensors, targets)
    # The seeds of dropout are no weights.
    variables = [variable for layer in model.supernet_layers for variable in layer.weights]
    values = {id(variable): np.array(variable) for variable in variables}
    filled = {id(target.variable) for target in targets.values()}
    unfilled = [variable.path for variable in variables if id(variable) not in filled]
    if unfilled:
        raise UserError(f"the checkpoint {path} has nothing for the variables {_listed(unfilled)}")
    # Widths that the authors' slimming head does not score get the score 0 and are not routes.
    for gate in model.slimming_gates:
        values[id(gate.w2)][:] = 0
    for name, target in targets.items():
        if target.variable is not None:
            target.write(tensors[name].astype("float32"), values[id(target.variable)])
    for variable in variables:
        variable.assign(values[id(variable)])
    model.replace_routes(range(min(SLIMMING_ROWS, model.num_widths)))
    model.gates_trained = True


def _check_names(path, tensors, targets):
    missing = [name for name in targets if name not in tensors]
    extra = [name for name in tensors if name not in targets]
    if not missing and not extra:
        return
    if len(missing) > len(targets) / 2:
        raise UserError(
            f"the checkpoint {path} is of another architecture than this DS-MobileNet: it has "
            f"tensors such as {_listed(extra)}"
        )
    parts = [f"lacks the tensors {_listed(missing)}"] * bool(missing)
    parts += [f"has tensors that the network does not use: {_listed(extra)}"] * bool(extra)
    raise UserError(f"the checkpoint {path} " + " and ".join(parts))


def _check_shapes(path, tensors, targets):
    for name, target in targets.items():
        shape = tensors[name].shape
        if shape != target.shape:
            raise UserError(
                f"the checkpoint {path} is of a network of other widths: its tensor '{name}' has "
                f"the shape {list(shape)} instead of {list(target.shape)}"
            )


def _listed(names):
    names = sorted(map(str, names))
    rest = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(map(repr, names[:_NAMES_SHOWN])) + rest


@dataclasses.dataclass(frozen=True)
class TensorTarget:
    """The variable, or the part of one, that a tensor of a checkpoint fills.

    Args:
        shape: Tuple of ints, the tensor's shape in PyTorch's layout.
        variable: `keras.Variable` to fill. None for a tensor that the network does not need.
        axes: Tuple of ints, the tensor's axes in the order of the variable's, counted after
            `squeezed` are removed. Empty if the order is the same.
        squeezed: Tuple of ints, axes of length 1 that the variable does not have.
        places: Tuple of indices, the parts of the variable that the tensor fills. Defaults to the
            whole variable.
    """

    shape: tuple
    variable: keras.Variable | None = None
    axes: tuple = ()
    squeezed: tuple = ()
    places: tuple = (...,)

    def write(self, tensor: np.ndarray, value: np.ndarray) -> None:
        """Writes the tensor into the value of its variable.

        Args:
            tensor: Array of the shape `shape`.
            value: Array of the variable's shape, which is changed in place.
        """
        tensor = np.squeeze(tensor, self.squeezed)
        tensor = np.transpose(tensor, self.axes) if self.axes else tensor
        for place in self.places:
            value[place] = tensor


def mobilenet_tensors(model: DynamicSlimmableNetwork) -> dict[str, TensorTarget]:
    """Returns the table of the tensors that a checkpoint has for a DS-MobileNet.

    Args:
        model: `DynamicSlimmableNetwork` with a `MobileNetSpec`.

    Returns:
        Dict that maps the name of each tensor in the authors' code to its `TensorTarget`.
    """
    steps = {step.layer.name: step for step in walk(sum(model.sections, ())) if step.layer}
    tensors = {}
    for keras_name, torch_name in _layer_names(model.spec).items():
        if keras_name in steps:
            step = steps[keras_name]
            targets = _TARGETS[type(step.layer)](step.layer, step.section)
            tensors.update({f"{torch_name}.{name}": target for name, target in targets.items()})
    return tensors


def _layer_names(spec):
    """Returns a dict from the names of the layers to those of the authors' modules."""
    names = {"stem_conv": "conv_stem", "stem_norm": "bn1", "classifier": "classifier"}
    count = 0
    for stage_index, stage in enumerate(spec.stages):
        for index in range(stage.blocks):
            count += 1
            block = "first_block" if index == 0 else f"residual_blocks.{index - 1}"
            for keras_name, torch_name in (
                ("depthwise", "conv_dw"),
                ("depthwise_norm", "bn1"),
                ("gate", "gate"),
                ("pointwise", "conv_pw"),
                ("pointwise_norm", "bn2"),
            ):
                name = f"block_{count}_{keras_name}"
                names[name] = f"blocks.{stage_index}.{block}.{torch_name}"
    return names


def _conv(layer, section):
    height, width, inputs, outputs = layer.kernel.shape
    shape = (outputs, inputs, height, width)
    return {"weight": TensorTarget(shape, layer.kernel, axes=(2, 3, 1, 0))}


def _depthwise(layer, section):
    height, width, channels, _ = layer.kernel.shape
    shape = (channels, 1, height, width)
    return {"weight": TensorTarget(shape, layer.kernel, axes=(2, 3, 0, 1))}


def _dense(layer, section):
    inputs, outputs = layer.kernel.shape
    return {
        "weight": TensorTarget((outputs, inputs), layer.kernel, axes=(1, 0)),
        "bias": TensorTarget((outputs,), layer.bias),
    }


def _gate(layer, section):
    """Returns the targets of a gate, whose dense layers are 1x1 convolutions in PyTorch."""
    channels, hidden = layer.channels[-1], layer.hidden_units
    axes, pixel = (1, 0), (2, 3)
    targets = {}
    if layer.attention:
        targets = {
            "conv_reduce.weight": TensorTarget((hidden, channels, 1, 1), layer.w1, axes, pixel),
            "conv_reduce.bias": TensorTarget((hidden,), layer.b1),
            "conv_expand.weight": TensorTarget((channels, hidden, 1, 1), layer.w3, axes, pixel),
            "conv_expand.bias": TensorTarget((channels,), layer.b3),
        }
    if layer.num_choices and layer.slimming_head == "one_hot":
        rows = min(SLIMMING_ROWS, layer.num_choices)
        scored = (np.s_[:, :rows],)
        shape = (rows, hidden, 1, 1)
        targets["gate.0.weight"] = TensorTarget(shape, layer.w2, axes, pixel, scored)
    return targets


def _norm(layer, section):
    """Returns the targets of a batch norm: statistics per width, one scale and one offset.

    The checkpoint stores scale and offset with the statistics of the widest width; all widths use
    them. Layers after the gate have one more row of statistics here, for the path "largest", which
    uses those of the widest width in the authors' code.
    """
    last = layer.num_statistics - 1
    widths = last if section else len(layer.channels)
    targets = {}
    for width in range(widths):
        channels = layer.channels[width]
        rows = (width, last) if section and width == widths - 1 else (width,)
        places = tuple(np.s_[row, :channels] for row in rows)
        if width == widths - 1:
            targets[f"aux_bn.{width}.weight"] = TensorTarget((channels,), layer.gamma)
            targets[f"aux_bn.{width}.bias"] = TensorTarget((channels,), layer.beta)
        for name, table in (
            ("running_mean", layer.moving_mean),
            ("running_var", layer.moving_variance),
        ):
            targets[f"aux_bn.{width}.{name}"] = TensorTarget((channels,), table, places=places)
        # PyTorch counts the batches that a moving average has seen; Keras does not.
        targets[f"aux_bn.{width}.num_batches_tracked"] = TensorTarget(())
    return targets


_TARGETS = {
    SlicedConv2D: _conv,
    SlicedDepthwiseConv2D: _depthwise,
    SlicedDense: _dense,
    DoubleHeadedGate: _gate,
    SwitchableBatchNormalization: _norm,
}
