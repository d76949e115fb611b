"""The network of full size against the authors' definition, written out tensor by tensor."""

import numpy as np
import pytest
import tensorflow as tf
from keras_dsnet.applications import DSMobileNet

from keras_dsnet.weights.ds_mbnet import assign_tensors, mobilenet_tensors, read_checkpoint

STAGES = [(1, 1), (2, 2), (2, 2), (6, 2), (2, 2)]
GATED_STAGE = 3


class Reference:
    """DS-MBNet by the names of its tensors, along one path.

    Args:
        state: dictionary of arrays in PyTorch's layout.
        width: index of the tail's channels.
        front: index of the front's channels.
    """

    def __init__(self, state, width, front):
        self.state, self.width, self.front = state, width, front

    def __call__(self, x):
        x = self.norm("bn1", self.conv("conv_stem", x, 2, self.front), self.front)
        for stage, (blocks, strides) in enumerate(STAGES):
            for block in range(blocks):
                name = f"blocks.{stage}." + (
                    f"residual_blocks.{block - 1}" if block else "first_block"
                )
                gated = (stage, block) == (GATED_STAGE, 0)
                before = self.width if stage >= GATED_STAGE and not gated else self.front
                after = self.width if stage >= GATED_STAGE else self.front
                x = self.depthwise(f"{name}.conv_dw", x, 1 if block else strides)
                x = self.attend(f"{name}.gate", self.norm(f"{name}.bn1", x, before))
                x = self.conv(f"{name}.conv_pw", x, 1, after, f"{name}.bn2")
                x = self.norm(f"{name}.bn2", x, after)
        x = tf.reduce_mean(x, (1, 2))
        weight = self.state["classifier.weight"][:, : x.shape[1]]
        return x @ weight.T + self.state["classifier.bias"]

    def conv(self, name, x, strides, width, norm="bn1"):
        channels = len(self.state[f"{norm}.aux_bn.{width}.running_mean"])
        weight = self.state[f"{name}.weight"][:channels, : x.shape[-1]]
        pad = weight.shape[-1] // 2
        pads = [[0, 0], [pad, pad], [pad, pad], [0, 0]]
        return tf.nn.conv2d(x, np.transpose(weight, (2, 3, 1, 0)), strides, pads)

    def depthwise(self, name, x, strides):
        weight = self.state[f"{name}.weight"][: x.shape[-1]]
        x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
        kernel = np.transpose(weight, (2, 3, 0, 1))
        return tf.nn.depthwise_conv2d(x, kernel, [1, strides, strides, 1], "VALID")

    def norm(self, name, x, width):
        widest = max(int(key.split(".")[-2]) for key in self.state if key.startswith(f"{name}.aux"))
        mean, variance = (
            self.state[f"{name}.aux_bn.{width}.running_{key}"] for key in ("mean", "var")
        )
        gamma, beta = (
            self.state[f"{name}.aux_bn.{widest}.{key}"][: len(mean)] for key in ("weight", "bias")
        )
        return tf.nn.swish((x - mean) / np.sqrt(variance + 1e-5) * gamma + beta)

    def attend(self, name, x):
        reduce, expand = (self.state[f"{name}.conv_{key}.weight"] for key in ("reduce", "expand"))
        channels = x.shape[-1]
        hidden = tf.reduce_mean(x, (1, 2)) @ reduce[:, :channels, 0, 0].T
        hidden = tf.nn.relu(hidden + self.state[f"{name}.conv_reduce.bias"])
        logits = hidden @ expand[:channels, :, 0, 0].T
        logits += self.state[f"{name}.conv_expand.bias"][:channels]
        return x * tf.sigmoid(logits)[:, None, None, :]


def random_state(model, generator):
    """Returns random tensors of a network, each of the size that keeps its features' size."""
    state = {}
    for name, target in mobilenet_tensors(model).items():
        fan_in = np.prod(target.shape[1:]) if len(target.shape) > 1 else 1
        value = generator.normal(size=target.shape) * np.sqrt(2 / fan_in)
        if name.endswith(("running_var", "bn1.weight", "bn2.weight")):
            value = generator.uniform(0.5, 2, target.shape)
        state[name] = np.asarray(0.2 * value if "bias" in name else value, "float32")
    return state


def test_the_reference_is_the_authors_network(shared_parity, shared_numbers, to_images):
    state, io = (
        read_checkpoint(shared_parity / "tiny_zip.pth.tar", ema=False),
        shared_numbers("tiny_io"),
    )
    images = to_images(io["img64"])
    for width in (0, 6, 13):
        expected = io["logits64_uniform"][width]
        np.testing.assert_allclose(Reference(state, width, 0)(images), expected, atol=1e-3)
    largest = Reference(state, 13, 1)(images)
    np.testing.assert_allclose(largest, io["logits64_largest"], atol=1e-3)


@pytest.fixture(scope="module")
def network():
    model = DSMobileNet(
        input_shape=(None, None, 3), attention="sigmoid", classifier_activation=None
    )
    state = random_state(model, np.random.default_rng(0))
    assign_tensors(model, state, "random")
    return model, state


@pytest.mark.long
@pytest.mark.parametrize("size", [64, 224])
def test_full_size_networks_of_any_weights_are_theirs(network, size):
    model, state = network
    images = np.random.default_rng(size).normal(size=(2, size, size, 3)).astype("float32")
    for path, (width, front) in {0: (0, 0), 7: (7, 0), 13: (13, 0), "largest": (13, 1)}.items():
        expected = Reference(state, width, front)(images).numpy()
        assert expected.shape == (2, 1000)
        tolerance = 1e-4 * np.max(np.abs(expected))
        np.testing.assert_allclose(model(images, path=path), expected, atol=tolerance)
