"""The double-headed dynamic gate: channel attention with a choice of width."""

import operator
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_dsnet.layers.slicing import (
    as_options,
    channels_at,
    check_channels,
    resolve_width,
    variable_slice,
)
from keras_dsnet.utils.argument_checks import check_int

ENCODERS = ("global", "regions")
NUM_REGIONS = 5


@keras.saving.register_keras_serializable(package="keras_dsnet")
class DoubleHeadedGate(keras.layers.Layer):
    """Double-headed dynamic gate (Sec. 3.2 of the paper, Eqs. 6-9).

    An average pool encodes the features (Eq. 6). A hidden layer `W1`, sliced to the channels of the
    input, maps them to a vector of fixed length. The attention head `W3` scales the channels
    (Eq. 9). The slimming head `W2` scores the candidate widths of the next section (Eqs. 7 and 8).

    With `encoder="regions"` the slimming head also sees where the features are: the means of four
    quadrants and of the centre. Each has its own rows `W1_r`, added before the activation of the
    hidden layer. They start at zero, so that the head starts as one of the global mean. Attention
    does not change.

    Args:
        channels: Int or tuple of ints in ascending order, channel options of the input.
        hidden_units: Int, length of the hidden vector. Defaults to a quarter of the maximum channel
            count.
        attention: "tanh" for `1 + tanh`, where `W3` starts at zero and attention at one, "sigmoid",
            or None for no attention head.
        num_choices: Int, number of candidate widths of the slimming head. None disables the head.
        slimming_head: "one_hot" gives one score per width, and the largest score is chosen.
            "scalar" gives one score, whose sigmoid chooses the width with the nearest ratio
            (Table 7).
        choice_ratios: Sequence of floats in (0, 1], the ratio of each choice to the widest, for the
            scalar head.
        share_encoder: Bool, whether both heads share `W1` (Table 7). If False, the slimming head
            has a separate `W1`.
        encoder: "global" for the mean of all positions, or "regions" for the means of five regions
            too, for the slimming head only.
        **kwargs: Further arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: `[batch, height, width, channels]`.
        width: Python int or int32 scalar tensor, index into `channels`.
        attention_mask: `[batch, channels]`, factor of the logits of the attention head. Stage II
            uses it because every image has a different width there. Defaults to no mask.
        with_scores: Bool, whether the slimming head runs. False returns only the attended input.

    Returns:
        The attended input. With a slimming head that runs, the pair of the attended input and the
        scores, float32 `[batch, num_choices]`, or `[batch, 1]` for a scalar head.

    Raises:
        ValueError: If the layer does not have the width, an option is unknown, or the input has
            another number of channels.

    Example:

    ```python
    import numpy as np
    from keras_dsnet.layers import DoubleHeadedGate

    gate = DoubleHeadedGate(channels=8, num_choices=4)
    outputs, scores = gate(np.ones((2, 5, 5, 8), "float32"))
    assert outputs.shape == (2, 5, 5, 8)
    assert gate.choose(scores, routes=(0, 2, 3)).shape == (2,)
    ```
    """

    def __init__(
        self,
        channels: int | Sequence[int],
        hidden_units: int | None = None,
        attention: str | None = "tanh",
        num_choices: int | None = None,
        slimming_head: str = "one_hot",
        choice_ratios: Sequence[float] | None = None,
        share_encoder: bool = True,
        encoder: str = "global",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.channels = as_options(channels, "channels")
        self.input_spec = keras.layers.InputSpec(ndim=4)
        if hidden_units is None:
            hidden_units = max(1, int(0.25 * self.channels[-1] + 0.5))
        self.hidden_units = check_int("hidden_units", hidden_units, 1)
        self.attention = attention
        self.num_choices = None if num_choices is None else check_int("num_choices", num_choices, 1)
        self.slimming_head = slimming_head
        self.choice_ratios: Any = (
            None if choice_ratios is None else tuple(map(float, choice_ratios))
        )
        self.share_encoder = share_encoder
        self.encoder = encoder
        self.supports_jit = len(self.channels) == 1
        if attention not in ("tanh", "sigmoid", None):
            raise ValueError(
                f"`attention` must be 'tanh', 'sigmoid' or None. Received: attention={attention!r}"
            )
        if slimming_head not in ("one_hot", "scalar"):
            raise ValueError(
                "`slimming_head` must be 'one_hot' or 'scalar'. "
                f"Received: slimming_head={slimming_head!r}"
            )
        if encoder not in ENCODERS:
            raise ValueError(f"`encoder` must be one of {ENCODERS}. Received: encoder={encoder!r}")
        if num_choices and slimming_head == "scalar":
            if self.choice_ratios is None or len(self.choice_ratios) != num_choices:
                raise ValueError(
                    "A scalar slimming head needs `choice_ratios` with one ratio for each of its "
                    f"{num_choices} choices. Received: choice_ratios={choice_ratios!r}"
                )
            ascending = all(a < b for a, b in zip(self.choice_ratios, self.choice_ratios[1:]))
            if not ascending or self.choice_ratios[0] <= 0 or self.choice_ratios[-1] > 1:
                raise ValueError(
                    "`choice_ratios` must be in ascending order, above 0 and at most 1. "
                    f"Received: choice_ratios={choice_ratios!r}"
                )

    @property
    def slimming_variables(self) -> list:
        """The variables that only the slimming head uses. Stage II trains them."""
        if not self.num_choices:
            return []
        regions = [] if self.w1_regions is None else [self.w1_regions]
        if not self.share_encoder:
            return [self.w1_slimming, self.b1_slimming, self.w2, *regions]
        # Without an attention head the encoder serves the slimming head only.
        return [*([] if self.attention else [self.w1, self.b1]), self.w2, *regions]

    def build(self, input_shape):
        channels, hidden = self.channels[-1], self.hidden_units
        self.w1 = self.b1 = self.w2 = self.w3 = self.b3 = self.w1_regions = None
        if self.attention or (self.num_choices and self.share_encoder):
            self.w1 = self._add("w1", (channels, hidden), "he_normal")
            self.b1 = self._add("b1", (hidden,), "zeros")
        if self.attention:
            start = "zeros" if self.attention == "tanh" else "glorot_uniform"
            self.w3 = self._add("w3", (hidden, channels), start)
            self.b3 = self._add("b3", (channels,), "zeros")
        if self.num_choices:
            if not self.share_encoder:
                self.w1_slimming = self._add("w1_slimming", (channels, hidden), "he_normal")
                self.b1_slimming = self._add("b1_slimming", (hidden,), "zeros")
            scores = 1 if self.slimming_head == "scalar" else self.num_choices
            self.w2 = self._add("w2", (hidden, scores), "glorot_uniform")
            if self.encoder == "regions":
                shape = (NUM_REGIONS, channels, hidden)
                self.w1_regions = self._add("w1_regions", shape, "zeros")

    def _add(self, name, shape, initializer):
        return self.add_weight(name=name, shape=shape, initializer=initializer)

    def call(self, inputs, width=None, attention_mask=None, with_scores=True):
        width = resolve_width(width, len(self.channels), self.name)
        channels = channels_at(self.channels, width)
        check_channels(inputs, channels, width, self.name)
        with_scores = with_scores and bool(self.num_choices)
        if not self.attention and not with_scores:
            return inputs
        # Keras sums float16 in float32, where the sum cannot overflow; `tf.reduce_mean` does not.
        pooled = keras.ops.mean(inputs, (1, 2))
        code = None if self.w1 is None else self._encode(pooled, channels, self.w1, self.b1)
        outputs = inputs
        if self.attention:
            attention = self._attend(tf.nn.relu(code), channels, attention_mask)
            outputs = inputs * attention[:, None, None, :]
        if not with_scores:
            return outputs
        if not self.share_encoder:
            code = self._encode(pooled, channels, self.w1_slimming, self.b1_slimming)
        if self.w1_regions is not None:
            code += self._encode_regions(inputs, channels)
        return outputs, tf.cast(tf.matmul(tf.nn.relu(code), variable_slice(self.w2)), tf.float32)

    def _encode(self, pooled, channels, weights, bias):
        weights = variable_slice(weights, channels, weights.shape[1])
        return tf.matmul(pooled, weights) + variable_slice(bias)

    def _encode_regions(self, inputs, channels):
        means = tf.stack([keras.ops.mean(region, (1, 2)) for region in regions(inputs)])
        weights = variable_slice(self.w1_regions, channels, self.hidden_units)
        return tf.reduce_sum(tf.matmul(means, weights), axis=0)

    def _attend(self, hidden, channels, mask):
        weights = variable_slice(self.w3, channels)
        logits = tf.matmul(hidden, weights) + variable_slice(self.b3, channels)
        logits = logits if mask is None else logits * mask
        return 1.0 + tf.tanh(logits) if self.attention == "tanh" else tf.sigmoid(logits)

    def route_scores(self, scores: tf.Tensor, routes: Sequence[int]) -> tf.Tensor:
        """Returns one score per route, float32 `[batch, len(routes)]`; the largest is chosen.

        Args:
            scores: Output of the slimming head, `[batch, num_choices]`.
            routes: Tuple of ints, candidate widths in ascending order.

        Raises:
            ValueError: If the widths are not in ascending order, or not among the choices.
        """
        routes = tuple(map(operator.index, routes))
        ascending = all(a < b for a, b in zip(routes, routes[1:]))
        if not routes or not ascending or routes[0] < 0 or routes[-1] >= (self.num_choices or 0):
            raise ValueError(
                f"`routes` of layer '{self.name}' must be ascending widths from 0 to "
                f"{(self.num_choices or 0) - 1}. Received: routes={routes!r}"
            )
        if self.slimming_head == "one_hot":
            if len(routes) == self.num_choices:
                return scores
            return tf.gather(scores, tf.constant(routes), axis=1)
        ratios = tf.constant([self.choice_ratios[width] for width in routes])
        return -tf.abs(tf.sigmoid(scores) - ratios)

    def choose(self, scores: tf.Tensor, routes: Sequence[int]) -> tf.Tensor:
        """Returns the chosen widths, int32 `[batch]`, always among `routes` (Eq. 8).

        Args:
            scores: Output of the slimming head, `[batch, num_choices]`.
            routes: Tuple of ints, candidate widths in ascending order.
        """
        index = tf.argmax(self.route_scores(scores, routes), axis=1, output_type=tf.int32)
        return tf.gather(tf.constant(routes, tf.int32), index)

    def sample(
        self,
        scores: tf.Tensor,
        routes: Sequence[int],
        temperature: float = 1.0,
        seed: tf.Tensor | None = None,
        share: tuple[tf.Tensor, int] | None = None,
    ) -> tf.Tensor:
        """Returns a differentiable choice: one-hot forwards, soft backwards (straight-through).

        Args:
            scores: Output of the slimming head, `[batch, num_choices]`.
            routes: Tuple of ints, candidate widths in ascending order.
            temperature: Float, temperature of the Gumbel-softmax.
            seed: int32 tensor `[2]`, seed of the Gumbel noise. Defaults to no noise. A scalar head
                never has noise.
            share: `(index, count)` where the scores are one of `count` equal shares of a batch,
                such as that of a replica. The noise is then that of the whole batch. Optional.

        Returns:
            float32 `[batch, len(routes)]`. The value is exactly one-hot. The gradient is that of
            the Gumbel-softmax, or for a scalar head that of a linear interpolation between the
            neighbours of its ratio.
        """
        soft, hard = self._soft_and_hard(scores, routes, temperature, seed, share)
        one_hot = tf.one_hot(tf.argmax(hard, axis=1), len(routes))
        # In these brackets exactly zero is added.
        return one_hot + (soft - tf.stop_gradient(soft))

    def soft_choice(
        self, scores: tf.Tensor, routes: Sequence[int], temperature: float = 1.0
    ) -> tf.Tensor:
        """Returns a soft choice without noise, float32 `[batch, len(routes)]` with sum 1.

        Args:
            scores: Output of the slimming head, `[batch, num_choices]`.
            routes: Tuple of ints, candidate widths in ascending order.
            temperature: Float, temperature of the softmax.
        """
        return self._soft_and_hard(scores, routes, temperature, None)[0]

    def _soft_and_hard(self, scores, routes, temperature, seed, share=None):
        """Returns the soft choice, and the noisy scores whose maximum is the hard choice."""
        hard = self.route_scores(scores, routes)
        if self.slimming_head == "scalar":
            return self._interpolated(scores, routes), hard
        if seed is not None:
            index, count = (0, 1) if share is None else share
            rows, width = tf.unstack(tf.shape(hard))
            uniform = tf.random.stateless_uniform([count * rows, width], seed, minval=1e-20)
            uniform = uniform[index * rows : (index + 1) * rows]
            hard -= tf.math.log(-tf.math.log(uniform))
        return tf.nn.softmax(hard / temperature), hard

    def _interpolated(self, scores, routes):
        """Returns the soft choice of a scalar head, shared by the two routes around its ratio."""
        ratios = [self.choice_ratios[width] for width in routes]
        # The interpolation has no slope outside the first and the last candidate.
        ratio = tf.clip_by_value(tf.sigmoid(scores), ratios[0], ratios[-1])
        gaps = [b - a for a, b in zip(ratios, ratios[1:])] or [1.0]
        left, right = tf.constant([gaps[0], *gaps]), tf.constant([*gaps, gaps[-1]])
        distance = ratio - tf.constant(ratios)[: len(routes)]
        gap = tf.where(distance < 0, left[: len(routes)], right[: len(routes)])
        return tf.nn.relu(1.0 - tf.abs(distance) / gap)

    def compute_output_spec(self, inputs, width=None, attention_mask=None, with_scores=True):
        resolve_width(width, len(self.channels), self.name)
        shape = self.compute_output_shape(inputs.shape, width, with_scores)
        if not (self.num_choices and with_scores):
            return keras.KerasTensor(shape, dtype=self.compute_dtype)
        outputs, scores = shape
        return (
            keras.KerasTensor(outputs, dtype=self.compute_dtype),
            keras.KerasTensor(scores, dtype="float32"),
        )

    def compute_output_shape(self, input_shape, width=None, with_scores=True):
        if not (self.num_choices and with_scores):
            return input_shape
        scores = 1 if self.slimming_head == "scalar" else self.num_choices
        return input_shape, (input_shape[0], scores)

    def get_config(self) -> dict:
        config = super().get_config()
        config.update(
            channels=self.channels,
            hidden_units=self.hidden_units,
            attention=self.attention,
            num_choices=self.num_choices,
            slimming_head=self.slimming_head,
            choice_ratios=self.choice_ratios,
            share_encoder=self.share_encoder,
            encoder=self.encoder,
        )
        return config


def regions(x: tf.Tensor) -> list[tf.Tensor]:
    """Returns the five regions of an encoder of regions: four quadrants and the centre.

    Sides of an odd length share their middle row or column, so that every side of 1 or more works.
    The centre leaves a quarter out on each side.

    Args:
        x: `[batch, height, width, channels]`.
    """
    return [x[:, top:bottom, left:right] for top, bottom, left, right in region_edges(*_sides(x))]


def region_edges(height: Any, width: Any) -> list[tuple]:
    """Returns `(top, bottom, left, right)` of the five regions of `regions`.

    Args:
        height: Int, or int32 scalar tensor.
        width: Int, or int32 scalar tensor.
    """
    rows, columns = (
        [(0, (side + 1) // 2), (side // 2, side), (side // 4, side - side // 4)]
        for side in (height, width)
    )
    quadrants = [(*row, *column) for row in rows[:2] for column in columns[:2]]
    return [*quadrants, (*rows[2], *columns[2])]


def _sides(x):
    shape = tf.shape(x)
    return [shape[axis] if x.shape[axis] is None else x.shape[axis] for axis in (1, 2)]
