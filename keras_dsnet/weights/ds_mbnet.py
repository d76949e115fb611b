"""Loads checkpoints of the authors' DS-MBNet into a `DSMobileNet`."""

import dataclasses

import numpy as np

from keras_dsnet.layers import (
    DoubleHeadedGate,
    SlicedConv2D,
    SlicedDense,
    SlicedDepthwiseConv2D,
    SwitchableBatchNormalization,
)
from keras_dsnet.models.topology import walk
from keras_dsnet.utils import UserError
from keras_dsnet.weights.torch_file import TorchFile

_SHOWN = 3


def read_checkpoint(path, ema=None):
    """Reads the weights of a checkpoint that `torch.save` wrote, without PyTorch.

    Args:
        path: of the file.
        ema: bool: the moving average of the weights ("state_dict_ema") instead of the weights
            ("state_dict"); None: the average where the checkpoint has one.

    Returns:
        Dictionary from a tensor's name, without "module." before it, to its array.

    Raises:
        OSError: the file cannot be opened.
        UserError: it is damaged or not a checkpoint, has no such weights, or has weights that are
            not numbers.
    """
    with TorchFile(path) as file:
        states = _pick(path, file.content, ema)
        return {name.removeprefix("module."): _finite(path, name, states[name]) for name in states}


def _pick(path, content, ema):
    content = content if isinstance(content, dict) else {}
    keys = {None: ("state_dict_ema", "state_dict"), True: ("state_dict_ema",)}
    for key in keys.get(ema, ("state_dict",)):
        if content.get(key):
            states = content[key]
            break
    else:
        # A file that holds the state dict itself.
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


def _finite(path, name, tensor):
    array = tensor.numpy()
    # bfloat16 is not a subtype of NumPy's floats.
    if array.dtype.kind not in "iub" and not np.all(np.isfinite(array.astype("float32"))):
        raise UserError(f"the checkpoint {path} has NaN or infinity in its tensor '{name}'")
    return array


def load_checkpoint(model, path, ema=None):
    """Loads a checkpoint of the authors' DS-MBNet into a DS-MobileNet of the same widths.

    Afterwards the routes are the four narrowest widths, which the authors' slimming head scores,
    and the gates count as trained; a released supernet, whose gates are not, needs
    `model.gates_trained = False`.

    Args:
        model: a `DynamicSlimmableNetwork` with sigmoid attention.
        path: of the checkpoint.
        ema: bool or None, as of `read_checkpoint`.

    Raises:
        OSError: the file cannot be opened.
        UserError: it cannot be read, or has other tensors than the network needs. If any tensor
            does not fit, nothing is changed.
    """
    assign_tensors(model, read_checkpoint(path, ema), path)


def assign_tensors(model, tensors, path):
    """Assigns what `read_checkpoint` returned; see `load_checkpoint`.

    Args:
        model: a `DynamicSlimmableNetwork`.
        tensors: dictionary of arrays.
        path: what messages name.
    """
    targets = mobilenet_tensors(model)
    _check_names(path, tensors, targets)
    _check_shapes(path, tensors, targets)
    values = {id(v): (v, np.array(v)) for v in model.variables}
    unfilled = set(values) - {id(target.variable) for target in targets.values()}
    if unfilled:
        names = [values[key][0].path for key in unfilled]
        raise UserError(f"the checkpoint {path} has nothing for the variables {_listed(names)}")
    _clear_scores(model, values)
    for name, target in targets.items():
        if target.variable is not None:
            target.write(tensors[name].astype("float32"), values[id(target.variable)][1])
    for variable, value in values.values():
        variable.assign(value)
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
    parts += [f"has tensors that nothing takes: {_listed(extra)}"] * bool(extra)
    raise UserError(f"the checkpoint {path} " + " and ".join(parts))


def _check_shapes(path, tensors, targets):
    for name, target in targets.items():
        shape = tensors[name].shape
        if shape != target.shape:
            raise UserError(
                f"the checkpoint {path} is of a network of other widths: its tensor '{name}' has "
                f"the shape {list(shape)} instead of {list(target.shape)}"
            )


def _clear_scores(model, values):
    """Widths that the authors' slimming head does not know score 0; routes leave them out."""
    for gate in model.slimming_gates:
        values[id(gate.w2)][1][:] = 0


def _listed(names):
    names = sorted(map(str, names))
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + rest


# The released slimming head scores the four narrowest widths.
SLIMMING_ROWS = 4


@dataclasses.dataclass(frozen=True)
class TensorTarget:
    """Where one tensor of a checkpoint goes.

    Args:
        shape: tuple of ints, the tensor's in PyTorch's layout.
        variable: the Keras variable that it fills, or fills a part of; None: it is not needed.
        axes: tuple: the tensor's axes in the variable's order, after `squeezed` are gone.
        squeezed: tuple: axes of length 1 that the variable does not have.
        places: tuple of indices: the parts of the variable that the tensor fills.
    """

    shape: tuple
    variable: object = None
    axes: tuple = ()
    squeezed: tuple = ()
    places: tuple = (...,)

    def write(self, tensor, value):
        """Writes the tensor into `value`, an array of the variable's shape.

        Args:
            tensor: array of the checkpoint, of this target's shape.
            value: array, changed in place.
        """
        tensor = np.squeeze(tensor, self.squeezed)
        tensor = np.transpose(tensor, self.axes) if self.axes else tensor
        for place in self.places:
            value[place] = tensor


def mobilenet_tensors(model):
    """Returns the tensors that a checkpoint of the authors' code has for a DS-MobileNet.

    Args:
        model: a `DynamicSlimmableNetwork` with a `MobileNetSpec`.

    Returns:
        Dictionary from the tensor's name to its `TensorTarget`.
    """
    layers = {step.layer.name: step for step in walk(sum(model.sections, ())) if step.layer}
    tensors = {}
    for keras_name, torch_name in _layer_names(model.spec).items():
        if keras_name in layers:
            step = layers[keras_name]
            targets = _TARGETS[type(step.layer)](step.layer, step.section)
            tensors.update({f"{torch_name}.{name}": target for name, target in targets.items()})
    return tensors


def _layer_names(spec):
    names = {"stem_conv": "conv_stem", "stem_norm": "bn1", "classifier": "classifier"}
    count = 0
    for stage_index, stage in enumerate(spec.stages):
        for index in range(stage.blocks):
            count += 1
            block = "first_block" if index == 0 else f"residual_blocks.{index - 1}"
            for ours, theirs in (
                ("depthwise", "conv_dw"),
                ("depthwise_norm", "bn1"),
                ("gate", "gate"),
                ("pointwise", "conv_pw"),
                ("pointwise_norm", "bn2"),
            ):
                names[f"block_{count}_{ours}"] = f"blocks.{stage_index}.{block}.{theirs}"
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
    channels, hidden = layer.channels[-1], layer.hidden_units
    pixel = (2, 3)
    targets = {}
    if layer.attention:
        targets = {
            "conv_reduce.weight": TensorTarget((hidden, channels, 1, 1), layer.w1, (1, 0), pixel),
            "conv_reduce.bias": TensorTarget((hidden,), layer.b1),
            "conv_expand.weight": TensorTarget((channels, hidden, 1, 1), layer.w3, (1, 0), pixel),
            "conv_expand.bias": TensorTarget((channels,), layer.b3),
        }
    if layer.num_choices and layer.slimming_head == "one_hot":
        rows = min(SLIMMING_ROWS, layer.num_choices)
        place = np.s_[:, :rows]
        targets["gate.0.weight"] = TensorTarget(
            (rows, hidden, 1, 1), layer.w2, (1, 0), pixel, (place,)
        )
    return targets


def _norm(layer, section):
    """Scale and offset of the widest entry hold for all; statistics are one pair per width.

    The path "largest", which has a row of statistics of its own here, uses the widest one's there.
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
        # How many batches an average has seen, which nothing here uses.
        targets[f"aux_bn.{width}.num_batches_tracked"] = TensorTarget(())
    return targets


_TARGETS = {
    SlicedConv2D: _conv,
    SlicedDepthwiseConv2D: _depthwise,
    SlicedDense: _dense,
    DoubleHeadedGate: _gate,
    SwitchableBatchNormalization: _norm,
}
