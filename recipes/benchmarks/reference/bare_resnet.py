"""DS-ResNet in bare TensorFlow: a reference network of `benchmark_training.py`."""

from typing import NamedTuple

import tensorflow as tf
from keras_dsnet_recipes.benchmarks.reference.bare_stage1 import (
    FRONT,
    TAIL,
    BareNetwork,
    Channels,
    attend,
    classify,
    convolve,
    group_norm,
    named,
)


class BareResNet(BareNetwork):
    """DS-ResNet, with a slimming gate before the first block of every stage.

    The arguments are those of `BareNetwork`.
    """

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
        """Runs the layers before the first slimming gate."""
        x = convolve(x, values["stem_conv/kernel"], self.spec.stem_strides)
        x = tf.nn.relu(self._normalize("stem_norm", self.stem, x, values))
        if self.spec.pool_strides > 1:
            x = tf.nn.max_pool2d(x, 3, self.spec.pool_strides, "SAME")
        return self._attend(self.blocks[0], x, values)

    def tail(self, x, values, norm):
        """Runs the layers after the first slimming gate and returns the logits."""
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
    """Returns 16 channels per group, or 8 or 4 where 16 does not divide every option."""
    return next((size for size in (16, 8) if not any(count % size for count in options)), 4)


class BottleneckBlock(NamedTuple):
    """A bottleneck block with the gate before it; `projects` means that its shortcut has layers."""

    name: str
    inputs: Channels
    inside: Channels
    outputs: Channels
    stride: int
    projects: bool
