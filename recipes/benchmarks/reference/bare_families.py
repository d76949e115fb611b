"""The three families of networks in bare TensorFlow: references of `benchmark_training.py`."""

from typing import NamedTuple

import tensorflow as tf
from keras_dsnet_recipes.benchmarks.reference.bare_network import (
    FRONT,
    TAIL,
    BareNetwork,
    Channels,
    attend,
    classify,
    convolve,
    depthwise,
    group_norm,
    named,
    swish,
)


class SeparableBlock(NamedTuple):
    """A depthwise separable block; `hidden` are the gate's hidden units."""

    name: str
    inputs: Channels
    outputs: Channels
    stride: int
    hidden: int


class BareMobileNet(BareNetwork):
    """DS-MobileNet; see `BareNetwork`. The gate is in the first block of the gated stage."""

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
            # In front of the gate the stored maximum, which no path uses, sizes the gates alone.
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
        """Runs what lies before the slimming gate."""
        x = convolve(x, values["stem_conv/kernel"], self.spec.stem_strides)
        x = self._normalize("stem_norm", x, values, norm)
        for block in self.front_blocks:
            x = self._pointwise(block, self._spatial(block, x, values, norm), values, norm)
        return self._spatial(self.tail_blocks[0], x, values, norm)

    def tail(self, x, values, norm):
        """Runs what lies behind the slimming gate; returns logits."""
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


class BottleneckBlock(NamedTuple):
    """A bottleneck block and the gate before it; `projects`: its shortcut has layers."""

    name: str
    inputs: Channels
    inside: Channels
    outputs: Channels
    stride: int
    projects: bool


class BareResNet(BareNetwork):
    """DS-ResNet; see `BareNetwork`. Every stage has a slimming gate, before its first block."""

    def _make_front(self):
        self.stem = Channels(self.spec.stem)
        self.blocks = self._blocks()
        self._add_conv(FRONT, "stem_conv", Channels((3,)), self.stem, 7)
        self._add_norm(FRONT, "stem_norm", self.stem, has_statistics=False)
        self._add_attention(FRONT, self.blocks[0])

    def _make_tail(self):
        self._add_bottleneck(self.blocks[0])
        for block in self.blocks[1:]:
            self._add_attention(TAIL, block)
            self._add_bottleneck(block)
        return self.blocks[-1].outputs

    def _blocks(self):
        inputs, blocks = self.stem, []
        for gate, stage in enumerate(self.spec.stages):
            inside = Channels(stage.channels, gate)
            outputs = Channels(tuple(4 * count for count in stage.channels), gate)
            for index in range(stage.blocks):
                name = f"stage_{gate + 1}_block_{index + 1}"
                stride = 1 if index else stage.strides
                blocks.append(BottleneckBlock(name, inputs, inside, outputs, stride, index == 0))
                inputs = outputs
        return blocks

    def _add_attention(self, half, block):
        hidden = max(1, int(self.spec.attention_ratio * block.inputs.most + 0.5))
        self._add_gate(half, f"{block.name}_gate", block.inputs, hidden)

    def _add_bottleneck(self, block):
        sizes = [block.inputs, block.inside, block.inside, block.outputs]
        for number, kernel_size in enumerate((1, 3, 1), start=1):
            inputs, outputs = sizes[number - 1 : number + 1]
            self._add_conv(TAIL, f"{block.name}_conv_{number}", inputs, outputs, kernel_size)
            self._add_norm(TAIL, f"{block.name}_norm_{number}", outputs, has_statistics=False)
        if block.projects:
            self._add_conv(TAIL, f"{block.name}_shortcut_conv", block.inputs, block.outputs)
            self._add_norm(TAIL, f"{block.name}_shortcut_norm", block.outputs, has_statistics=False)

    def front(self, x, values, norm):
        """Runs what lies before the first slimming gate."""
        x = convolve(x, values["stem_conv/kernel"], self.spec.stem_strides)
        x = tf.nn.relu(self._normalize("stem_norm", self.stem, x, values))
        if self.spec.pool_strides > 1:
            x = tf.nn.max_pool2d(x, 3, self.spec.pool_strides, "SAME")
        return self._attend(self.blocks[0], x, values)

    def tail(self, x, values, norm):
        """Runs what lies behind the first slimming gate; returns logits."""
        x = self._bottleneck(self.blocks[0], x, values)
        for block in self.blocks[1:]:
            x = self._bottleneck(block, self._attend(block, x, values), values)
        return classify(x, values)

    def _attend(self, block, x, values):
        return attend(x, *named(values, f"{block.name}_gate", "w1", "b1", "w3", "b3"))

    def _bottleneck(self, block, x, values):
        name, shortcut = block.name, x
        if block.projects:
            shortcut = convolve(x, values[f"{name}_shortcut_conv/kernel"], block.stride)
            shortcut = self._normalize(f"{name}_shortcut_norm", block.outputs, shortcut, values)
        x = convolve(x, values[f"{name}_conv_1/kernel"])
        x = tf.nn.relu(self._normalize(f"{name}_norm_1", block.inside, x, values))
        x = convolve(x, values[f"{name}_conv_2/kernel"], block.stride)
        x = tf.nn.relu(self._normalize(f"{name}_norm_2", block.inside, x, values))
        x = convolve(x, values[f"{name}_conv_3/kernel"])
        x = self._normalize(f"{name}_norm_3", block.outputs, x, values)
        return tf.nn.relu(x + shortcut)

    def _normalize(self, name, channels, x, values):
        gamma, beta = named(values, name, "gamma", "beta")
        return group_norm(x, gamma, beta, _group_size(channels.options))


def _group_size(options):
    """16 channels a group, or 8 or 4 where the slimmest needs it."""
    return next((size for size in (16, 8) if not any(count % size for count in options)), 4)


class InvertedBlock(NamedTuple):
    """An inverted residual block; `hidden` are the gate's hidden units."""

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


class BareEfficientNet(BareNetwork):
    """DS-EfficientNet; see `BareNetwork`. The gate is in the first block of the gated stage."""

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
        """Runs what lies before the slimming gate."""
        x = convolve(x, values["stem_conv/kernel"], self.spec.stem_strides)
        x = swish(self._normalize("stem_norm", x, values, norm))
        for block in self.front_blocks:
            x = self._block(block, x, values, norm)
        return self._expand(self.tail_blocks[0], x, values, norm)

    def tail(self, x, values, norm):
        """Runs what lies behind the slimming gate; returns logits."""
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
