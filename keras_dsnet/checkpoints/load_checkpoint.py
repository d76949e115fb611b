"""Gives a network the weights of a PyTorch checkpoint."""

import numpy as np

from keras_dsnet.checkpoints.mobilenet_tensors import SLIMMING_ROWS, mobilenet_tensors
from keras_dsnet.checkpoints.torch_file import TorchFile
from keras_dsnet.utils import UserError

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
