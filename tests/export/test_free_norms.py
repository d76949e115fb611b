"""Files of a family whose batch norms do not all follow a convolution."""

import dataclasses

import numpy as np
import pytest
from tiny_families import GatedStage, tiny_images, tiny_network

from keras_dsnet.export import DynamicInterpreter
from keras_dsnet.models import NetworkSpec, register_family

IMAGES = tiny_images()[:3]


@register_family
@dataclasses.dataclass(frozen=True)
class _FreeNormSpec(NetworkSpec):
    """Norms after a pool, before a depthwise convolution, and at the start of a branch."""

    stem: tuple = (8,)
    stem_strides: int = 2
    stages: tuple = (GatedStage(1, (8, 16, 24)),)
    activation: str = "relu"
    stage_class = GatedStage

    def features(self, build, input_channels):
        channels = self.stages[0].channels
        front = [
            build.conv("stem", (input_channels,), self.stem, 3, self.stem_strides),
            build.max_pool("pool", 2, 2),
            build.batch_norm("stem_norm", self.stem, self.activation),
            build.gate("gate", self.stem, slimming=True),
            build.conv("conv", self.stem, channels, 1, 1),
            build.max_pool("second_pool", 3, 1),
            build.batch_norm("norm", channels, "relu"),
        ]
        branch = [
            build.batch_norm("branch_norm", channels, "relu"),
            build.conv("branch_conv", channels, channels, 3, 1),
        ]
        rest = [
            build.residual(branch),
            build.batch_norm("block_norm", channels),
            build.depthwise("depthwise", channels, 3, 1),
            build.batch_norm("last_norm", channels, "relu"),
        ]
        return [*front, *rest], channels


@pytest.fixture(scope="module")
def network():
    return tiny_network(_FreeNormSpec())


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["shared", "fast", "staged"])
def test_a_routed_file_applies_them_at_every_width(network, tmp_path, layout):
    network.export(
        tmp_path / "m.tflite", format="litert", routes=(0, 2), layout=layout, verbose=False
    )
    interpreter = DynamicInterpreter(tmp_path / "m.tflite")
    for width in (0, 2):
        for image in IMAGES:
            outputs, path = interpreter.run(image, min_width=width, max_width=width)
            assert path == (width,)
            np.testing.assert_allclose(outputs, network(image[None], path=width)[0], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [None, "float16", "int8"])
def test_a_file_of_one_path_applies_them(network, tmp_path, quantize):
    from keras_dsnet.export import export_subnetwork

    data = (
        {"representative_data": np.tile(tiny_images(), (5, 1, 1, 1))} if quantize == "int8" else {}
    )
    facts = export_subnetwork(network, 1, tmp_path / "m.tflite", quantize=quantize, **data)
    # Without the scale and the offset of a norm it was half of the largest output.
    assert facts["difference"] < {None: 1e-4, "float16": 0.01, "int8": 0.1}[quantize]
