"""The steps of a network in JAX, for several sub-networks at a time.

`keras_dsnet.models.topology` has the steps; here they are dicts that `task.describe_steps` made.
All sub-networks run with the channels of the widest, and a mask sets the channels to zero that a
narrower one does not have. The outputs and the gradients are those of the sliced layers. One batch
holds the images of all sub-networks, one after the other, so that a step needs as few kernels as
that of one network.

Nothing here imports TensorFlow.
"""

import jax
import jax.numpy as jnp
import numpy as np


class JaxNetwork:
    """Runs the steps of a network in training or at inference.

    Args:
        steps: List of dicts, from `task.describe_steps`.

    Attributes:
        norms: List of dicts, the batch norms of the network in the order in which they run.
    """

    def __init__(self, steps):
        self.steps = steps
        self.norms = [s for s in _walk(steps) if s["kind"] == "norm" and "moving_mean" in s]

    def logits(self, variables, images, widths, training=True):
        """Runs sub-networks on the same images.

        Args:
            variables: List of arrays, the variables of the network in its own order.
            images: float32 `[batch, height, width, 3]`.
            widths: int32 `[sub-networks, sections]`. The first section has the width 0.
            training: Bool, whether to normalise with the statistics of the batch.

        Returns:
            `(logits, moments)`: logits `[sub-networks, batch, classes]`, and for each of `norms`
            the mean and the unbiased variance of the batch `[sub-networks, channels]`. The layers
            before the first gate run once, and their moments have one row. At inference there are
            none.
        """
        run = _Run(variables, widths, training)
        x = run.steps(self.steps, images[None])
        x = jnp.broadcast_to(x, (len(widths), *x.shape[1:]))
        return x, run.moments


class _Run:
    """One forward pass. Features are `[sub-networks, batch, height, width, channels]`."""

    def __init__(self, variables, widths, training):
        self.variables = variables
        self.widths = widths
        self.training = training
        self.moments = []

    def steps(self, steps, x):
        for step, after in zip(steps, [*steps[1:], {"kind": None}]):
            x = getattr(self, step["kind"])(step, x)
            # A norm masks its outputs itself. A depthwise convolution keeps zeros.
            if step["kind"] == "conv" and after["kind"] != "norm":
                x = self._masked(step, x)
        return x

    def _masked(self, step, x):
        """Sets the channels to zero that a sub-network does not have."""
        if len(step["options"]) == 1:
            return x
        mask = self._mask(step)
        return x * jnp.expand_dims(mask, range(1, x.ndim - 1))

    def _mask(self, step):
        options = step["options"]
        table = np.arange(options[-1]) < np.array(options)[:, None]
        mask = jnp.asarray(table, jnp.float32)[self.widths[:, step["section"]]]
        # All sub-networks have the same channels before the first gate.
        return mask if step["section"] else mask[:1]

    def _spread(self, step, x):
        """Gives every sub-network its own features after the first gate."""
        if step["section"] and len(x) == 1:
            return jnp.broadcast_to(x, (len(self.widths), *x.shape[1:]))
        return x

    def conv(self, step, x):
        x = self._spread(step, x)
        kernel = self.variables[step["kernel"]]
        if step["kernel_size"] == step["strides"] == 1:
            x = jnp.matmul(x, kernel[0, 0])
        else:
            x = _convolve(step, x, kernel)
        return x if step["bias"] is None else x + self.variables[step["bias"]]

    def depthwise(self, step, x):
        x = self._spread(step, x)
        kernel = self.variables[step["kernel"]].transpose(0, 1, 3, 2)
        x = _convolve(step, x, kernel, groups=x.shape[-1])
        if step["bias"] is None:
            return x
        return self._masked(step, x + self.variables[step["bias"]])

    def norm(self, step, x):
        gamma, beta = self.variables[step["gamma"]], self.variables[step["beta"]]
        x = self._spread(step, x)
        normalize = self._batch_norm if "moving_mean" in step else self._group_norm
        x = _activate(step["activation"], normalize(step, x) * gamma + beta)
        return self._masked(step, x)

    def _batch_norm(self, step, x):
        if self.training:
            mean = x.mean((1, 2, 3))
            variance = jnp.maximum((x**2).mean((1, 2, 3)) - mean**2, 0.0)
            count = np.prod(x.shape[1:4])
            self.moments.append((mean, variance * (count / max(count - 1, 1))))
        else:
            rows = self.widths[:, step["section"]] if step["section"] else jnp.zeros(1, int)
            mean = self.variables[step["moving_mean"]][rows]
            variance = self.variables[step["moving_variance"]][rows]
        scale = jax.lax.rsqrt(variance + step["epsilon"])
        return (x - mean[:, None, None, None]) * scale[:, None, None, None]

    def _group_norm(self, step, x):
        groups = x.reshape(*x.shape[:-1], -1, step["channels_per_group"])
        mean = groups.mean((2, 3, 5), keepdims=True)
        variance = jnp.square(groups - mean).mean((2, 3, 5), keepdims=True)
        return ((groups - mean) * jax.lax.rsqrt(variance + step["epsilon"])).reshape(x.shape)

    def gate(self, step, x):
        if step["attention"] is None:
            return x
        w1, b1, w3, b3 = (self.variables[step[name]] for name in ("w1", "b1", "w3", "b3"))
        logits = jax.nn.relu(x.mean((2, 3)) @ w1 + b1) @ w3 + b3
        attention = (
            1.0 + jnp.tanh(logits) if step["attention"] == "tanh" else jax.nn.sigmoid(logits)
        )
        return x * attention[:, :, None, None]

    def max_pool(self, step, x):
        window, strides = (1, 1, *step["size"], 1), (1, 1, *step["strides"], 1)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, "SAME")

    def residual(self, step, x):
        shortcut = self.steps(step["shortcut"], x)
        x = self.steps(step["branch"], x)
        return _activate(step["activation"], x + shortcut)

    def pool(self, step, x):
        return x.mean((2, 3))

    def global_max_pool(self, step, x):
        return x.max((2, 3))

    def dense(self, step, x):
        x = jnp.matmul(self._spread(step, x), self.variables[step["kernel"]])
        return x if step["bias"] is None else x + self.variables[step["bias"]]


def _convolve(step, x, kernel, groups=1):
    padding = step["padding"].upper()
    if padding == "SYMMETRIC":
        padding = [(step["kernel_size"] // 2,) * 2] * 2
    outputs = jax.lax.conv_general_dilated(
        x.reshape(-1, *x.shape[2:]),
        kernel,
        (step["strides"],) * 2,
        padding,
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return outputs.reshape(*x.shape[:2], *outputs.shape[1:])


def _activate(name, x):
    """Applies the activation of a step, by its name in Keras or None."""
    functions = {None: lambda y: y, "swish": jax.nn.silu, "silu": jax.nn.silu, "relu": jax.nn.relu}
    return functions[name](x)


def _walk(steps):
    """Yields the steps in the order in which `_Run` runs them: a shortcut before its branch."""
    for step in steps:
        if step["kind"] == "residual":
            yield from _walk(step["shortcut"])
            yield from _walk(step["branch"])
        else:
            yield step
