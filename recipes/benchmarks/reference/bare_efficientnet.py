"""DS-EfficientNet in bare TensorFlow: a reference network of `benchmark_training.py`."""

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


class BareEfficientNet(BareNetwork):
    """DS-EfficientNet, with its slimming gate in the first block of the gated stage.

    The arguments are those of `BareNetwork`.
    """

    def _make_front(self):
        self.stem, self.top = Channels(self.spec.stem), Channels((self.spec.top,))
        blocks, gate_block = self._blocks()
        self.front_blocks, self.tail_blocks = blocks[:gate_block], blocks[gate_block:]
        self._add_conv(FRONT, "stem_conv", Channels((3,)), self.stem, 3)
        self._add_norm(FRONT, "stem_norm", self.stem)
        for block in self.front_blocks:
            self._add_expansion(FRONT, block)
            self._add_projection(FRONT, block)
        self._add_expansion(FRONT, self.tail_blocks[0])

    def _make_tail(self):
        self._add_projection(TAIL, self.tail_blocks[0])
        for block in self.tail_blocks[1:]:
            self._add_expansion(TAIL, block)
            self._add_projection(TAIL, block)
        self._add_conv(TAIL, "top_conv", self.tail_blocks[-1].outputs, self.top)
        self._add_norm(TAIL, "top_norm", self.top)
        return self.top

    def _blocks(self):
        """Returns all blocks, and the index of the one with the slimming gate."""
        inputs, blocks, gate_block = self.stem, [], None
        for stage in self.spec.stages:
            if stage.gated:
                gate_block = len(blocks)
            outputs = Channels(stage.channels)
            for index in range(stage.blocks):
                inside = Channels(tuple(stage.expansion * count for count in inputs.options))
                hidden = max(1, round(self.spec.attention_ratio * inputs.most))
                stride, name = 1 if index else stage.strides, f"block_{len(blocks) + 1}"
                sizes = inputs, inside, outputs
                blocks.append(InvertedBlock(name, *sizes, stride, stage.kernel_size, hidden))
                inputs = outputs
        return blocks, gate_block

    def _add_expansion(self, half, block):
        name = block.name
        if block.expands:
            self._add_conv(half, f"{name}_expand", block.inputs, block.inside)
            self._add_norm(half, f"{name}_expand_norm", block.inside)
        self._add_depthwise(half, f"{name}_depthwise", block.inside, block.kernel_size)
        self._add_norm(half, f"{name}_depthwise_norm", block.inside)
        self._add_gate(half, f"{name}_gate", block.inside, block.hidden)

    def _add_projection(self, half, block):
        self._add_conv(half, f"{block.name}_project", block.inside, block.outputs)
        self._add_norm(half, f"{block.name}_project_norm", block.outputs)

    def front(self, x, values, norm):
        """Runs the layers before the slimming gate."""
        x = convolve(x, values["stem_conv/kernel"], self.spec.stem_strides)
        x = swish(self._normalize("stem_norm", x, values, norm))
        for block in self.front_blocks:
            x = self._block(block, x, values, norm)
        return self._expand(self.tail_blocks[0], x, values, norm)

    def tail(self, x, values, norm):
        """Runs the layers after the slimming gate and returns the logits."""
        x = self._project(self.tail_blocks[0], x, values, norm)
        for block in self.tail_blocks[1:]:
            x = self._block(block, x, values, norm)
        x = convolve(x, values["top_conv/kernel"])
        return classify(swish(self._normalize("top_norm", x, values, norm)), values)

    def _block(self, block, x, values, norm):
        outputs = self._project(block, self._expand(block, x, values, norm), values, norm)
        return x + outputs if block.has_shortcut else outputs

    def _expand(self, block, x, values, norm):
        """Runs a block up to its gate, whose attention is squeeze-and-excitation."""
        name = block.name
        if block.expands:
            x = convolve(x, values[f"{name}_expand/kernel"])
            x = swish(self._normalize(f"{name}_expand_norm", x, values, norm))
        x = depthwise(x, values[f"{name}_depthwise/kernel"], block.stride)
        x = swish(self._normalize(f"{name}_depthwise_norm", x, values, norm))
        return attend(x, *named(values, f"{name}_gate", "w1", "b1", "w3", "b3"))

    def _project(self, block, x, values, norm):
        x = convolve(x, values[f"{block.name}_project/kernel"])
        return self._normalize(f"{block.name}_project_norm", x, values, norm)

    def _normalize(self, name, x, values, norm):
        return norm(name, x, *named(values, name, "gamma", "beta"))


class InvertedBlock(NamedTuple):
    """An inverted residual block; `hidden` is the number of hidden units of its gate."""

    name: str
    inputs: Channels
    inside: Channels
    outputs: Channels
    stride: int
    kernel_size: int
    hidden: int

    @property
    def expands(self):
        return self.inside != self.inputs

    @property
    def has_shortcut(self):
        return self.stride == 1 and self.inputs == self.outputs
