"""Makes the steps of a network: what the blocks of all families are made of."""

from keras import layers

from keras_dsnet.layers import (
    DoubleHeadedGate,
    SlicedConv2D,
    SlicedDense,
    SlicedDepthwiseConv2D,
    SlicedGroupNormalization,
    SwitchableBatchNormalization,
)
from keras_dsnet.models.topology import Step


class StepBuilder:
    """Makes steps whose layers are built, and counts the sections.

    Channels are tuples of channel options; one option is static. What is made after a slimming gate
    belongs to the gate's section.

    Args:
        spec: a `NetworkSpec`, whose options the layers follow.
        dtype: dtype policy of the layers.

    Attributes:
        section: int: the slimming gates made so far.
    """

    def __init__(self, spec, dtype=None):
        self.spec = spec
        self.dtype = dtype
        self.section = 0

    def conv(self, name, inputs, outputs, kernel_size=1, strides=1):
        """A convolution from channel options to channel options.

        Args:
            name: str, of the layer.
            inputs: tuple of ints, channel options of the input.
            outputs: tuple of ints, channel options of the output.
            kernel_size: int.
            strides: int.

        Returns:
            A `Step`.
        """
        conv = SlicedConv2D(
            outputs,
            kernel_size,
            strides,
            input_channels=inputs[-1],
            dtype=self.dtype,
            name=name,
        )
        return self._built("conv", conv, inputs[-1])

    def depthwise(self, name, channels, kernel_size=3, strides=1):
        """A depthwise convolution.

        Args:
            name: str, of the layer.
            channels: tuple of ints, channel options of input and output.
            kernel_size: int.
            strides: int.

        Returns:
            A `Step`.
        """
        conv = SlicedDepthwiseConv2D(channels, kernel_size, strides, dtype=self.dtype, name=name)
        return self._built("depthwise", conv, channels[-1])

    def batch_norm(self, name, channels, activation=None, zero_gamma=False):
        """Batch normalisation with statistics for every width of this section.

        Args:
            name: str, of the layer.
            channels: tuple of ints, channel options of input and output.
            activation: name of the Keras activation that follows; None: none does.
            zero_gamma: bool: start with scales of 0, as the last norm of a residual branch does.

        Returns:
            A `Step`.
        """
        widths = self.spec.num_widths if self.section else 1
        norm = SwitchableBatchNormalization(
            channels,
            # One row more for the path "largest".
            num_statistics=widths + self.spec.wide_front,
            synchronized=self.spec.synchronized,
            gamma_initializer="zeros" if zero_gamma else "ones",
            dtype=self.dtype,
            name=name,
        )
        return self._built("norm", norm, channels[-1], activation)

    def group_norm(self, name, channels, activation=None, zero_gamma=False):
        """Group normalisation, 16 channels a group, or 8 or 4 where the slimmest needs it.

        Args:
            name: str, of the layer.
            channels: tuple of ints, channel options of input and output.
            activation: name of the Keras activation that follows; None: none does.
            zero_gamma: bool: start with scales of 0, as the last norm of a residual branch does.

        Returns:
            A `Step`.
        """
        norm = SlicedGroupNormalization(
            channels,
            channels_per_group=next((s for s in (16, 8) if not any(c % s for c in channels)), 4),
            gamma_initializer="zeros" if zero_gamma else "ones",
            dtype=self.dtype,
            name=name,
        )
        return self._built("norm", norm, channels[-1], activation)

    def gate(self, name, channels, slimming=False, hidden_units=None):
        """A gate; with `slimming` it chooses the width of all steps made after it.

        Args:
            name: str.
            channels: tuple of ints, the channel options of its input.
            slimming: bool.
            hidden_units: int; None: the spec's `attention_ratio` times the most channels.

        Returns:
            A `Step`.
        """
        spec = self.spec
        ratios = spec.ratios
        gate = DoubleHeadedGate(
            channels,
            hidden_units=hidden_units or max(1, int(spec.attention_ratio * channels[-1] + 0.5)),
            attention=spec.attention,
            num_choices=spec.num_widths if slimming else None,
            slimming_head=spec.slimming_head,
            choice_ratios=[ratio / ratios[-1] for ratio in ratios] if slimming else None,
            share_encoder=spec.share_encoder,
            dtype=self.dtype,
            name=name,
        )
        step = self._built("gate", gate, channels[-1])
        self.section += slimming
        return step

    def max_pool(self, name, size, strides):
        """A maximum over windows, padded at the end where the size needs it.

        Args:
            name: str, of the layer.
            size: int, of a window.
            strides: int.

        Returns:
            A `Step`.
        """
        # Whatever Keras's global format is: all other layers know this one alone.
        pool = layers.MaxPooling2D(
            size, strides, "same", "channels_last", dtype=self.dtype, name=name
        )
        return Step("max_pool", pool, self.section)

    def residual(self, branch, shortcut=(), activation=None):
        """The sum of a branch and a shortcut of the same input; no shortcut: the input itself.

        Args:
            branch: list of `Step`.
            shortcut: list of `Step`.
            activation: name of the Keras activation behind the sum; None: none.

        Returns:
            A `Step`.
        """
        return Step(
            "residual",
            section=self.section,
            activation=activation,
            branch=tuple(branch),
            shortcut=tuple(shortcut),
        )

    def global_pool(self, pooling):
        """The features' mean or maximum over height and width.

        Args:
            pooling: "avg" or "max".

        Returns:
            A `Step`.
        """
        return Step({"avg": "pool", "max": "global_max_pool"}[pooling], section=self.section)

    def head(self, channels, classes):
        """Pool, dropout where the spec has it, and classifier: a list of steps.

        Args:
            channels: tuple of ints, channel options of the last features.
            classes: int.
        """
        steps = [self.global_pool("avg")]
        if self.spec.dropout:
            dropout = layers.Dropout(self.spec.dropout, dtype=self.dtype, name="dropout")
            steps.append(Step("dropout", dropout, self.section))
        dense = SlicedDense(
            classes, input_channels=channels[-1], dtype=self.dtype, name="classifier"
        )
        dense.build((None, channels[-1]))
        return [*steps, Step("dense", dense, self.section)]

    def _built(self, kind, layer, channels, activation=None):
        layer.build((None, None, None, channels))
        return Step(kind, layer, self.section, activation)
