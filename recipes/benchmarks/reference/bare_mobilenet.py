"""DS-MobileNet in bare TensorFlow: a reference network of `benchmark_training.py`."""

from typing import NamedTuple

from keras_dsnet_recipes.benchmarks.reference.bare_stage1 import (
    FRONT,
    TAIL,
    BareNetwork,
    Channels,
    attend,
    classify,
    convolve,
    depthwise,
    named,
    swish,
)


class BareMobileNet(BareNetwork):
    """DS-MobileNet, with its slimming gate in the first block of the gated stage.

    The arguments are those of `BareNetwork`.
    """

    def _make_front(self):
        blocks, self.gate_block = self._blocks()
        self.front_blocks, self.tail_blocks = blocks[: self.gate_block], blocks[self.gate_block :]
        stem = Channels(self.spec.stem[:1])
        self._add_conv(FRONT, "stem_conv", Channels((3,)), stem, 3)
        self._add_norm(FRONT, "stem_norm", stem)
        for block in self.front_blocks:
            self._add_spatial(FRONT, block)
            self._add_pointwise(FRONT, block)
        self._add_spatial(FRONT, self.tail_blocks[0])

    def _make_tail(self):
        self._add_pointwise(TAIL, self.tail_blocks[0])
        for block in self.tail_blocks[1:]:
            self._add_spatial(TAIL, block)
            self._add_pointwise(TAIL, block)
        return self.tail_blocks[-1].outputs

    def _blocks(self):
        """Returns all blocks, and the index of the one with the slimming gate."""
        inputs, most = Channels(self.spec.stem[:1]), self.spec.stem[-1]
        blocks, gate_block = [], None
        for stage in self.spec.stages:
            if stage.gated:
                gate_block = len(blocks)
            # Before the gate no path uses the maximum of the options; it only sizes the gates.
            outputs = Channels(stage.channels if gate_block is not None else stage.channels[:1])
            for index in range(stage.blocks):
                name = f"block_{len(blocks) + 1}"
                hidden = int(self.spec.attention_ratio * most + 0.5)
                stride = 1 if index else stage.strides
                blocks.append(SeparableBlock(name, inputs, outputs, stride, hidden))
                inputs, most = outputs, stage.channels[-1]
        return blocks, gate_block

    def _add_spatial(self, half, block):
        self._add_depthwise(half, f"{block.name}_depthwise", block.inputs)
        self._add_norm(half, f"{block.name}_depthwise_norm", block.inputs)
        self._add_gate(half, f"{block.name}_gate", block.inputs, block.hidden)

    def _add_pointwise(self, half, block):
        self._add_conv(half, f"{block.name}_pointwise", block.inputs, block.outputs)
        self._add_norm(half, f"{block.name}_pointwise_norm", block.outputs)

    def front(self, x, values, norm):
        """Runs the layers before the slimming gate."""
        x = convolve(x, values["stem_conv/kernel"], self.spec.stem_strides)
        x = self._normalize("stem_norm", x, values, norm)
        for block in self.front_blocks:
            x = self._pointwise(block, self._spatial(block, x, values, norm), values, norm)
        return self._spatial(self.tail_blocks[0], x, values, norm)

    def tail(self, x, values, norm):
        """Runs the layers after the slimming gate and returns the logits."""
        x = self._pointwise(self.tail_blocks[0], x, values, norm)
        for block in self.tail_blocks[1:]:
            x = self._pointwise(block, self._spatial(block, x, values, norm), values, norm)
        return classify(x, values)

    def _spatial(self, block, x, values, norm):
        x = depthwise(x, values[f"{block.name}_depthwise/kernel"], block.stride)
        x = self._normalize(f"{block.name}_depthwise_norm", x, values, norm)
        return attend(x, *named(values, f"{block.name}_gate", "w1", "b1", "w3", "b3"))

    def _pointwise(self, block, x, values, norm):
        x = convolve(x, values[f"{block.name}_pointwise/kernel"])
        return self._normalize(f"{block.name}_pointwise_norm", x, values, norm)

    def _normalize(self, name, x, values, norm):
        return swish(norm(name, x, *named(values, name, "gamma", "beta")))


class SeparableBlock(NamedTuple):
    """A depthwise separable block; `hidden` is the number of hidden units of its gate."""

    name: str
    inputs: Channels
    outputs: Channels
    stride: int
    hidden: int
