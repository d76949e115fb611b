"""How the authors' DS-MBNet names and lays out what the layers of DS-MobileNet hold."""

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
