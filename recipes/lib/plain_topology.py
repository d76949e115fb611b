"""The plain networks of one width that the paper's networks were made from.

Nothing here imports TensorFlow before a network is made.
"""

import dataclasses

# Number of blocks, strides and channels of each stage.
_MOBILENET_V1 = ((1, 1, 64), (2, 2, 128), (2, 2, 256), (6, 2, 512), (2, 2, 1024))
# The same, and kernel size and expansion.
_EFFICIENTNET_B0 = (
    (1, 1, 16, 3, 1),
    (2, 2, 24, 3, 6),
    (2, 2, 40, 5, 6),
    (3, 2, 80, 3, 6),
    (3, 1, 112, 5, 6),
    (4, 2, 192, 5, 6),
    (1, 1, 320, 3, 6),
)
# Networks of --model that were made from a plain network.
PLAIN = ("ds_mobilenet", "ds_efficientnet_b0")
# Both networks begin with as many channels.
_STEM = 32
# The stage that begins with the gate. With one width the gate has nothing to choose.
_GATED = {"ds_mobilenet": 3, "ds_efficientnet_b0": 4}


def plain_fields(model):
    """Returns the fields of the spec of a plain network of one width.

    They are those of MobileNetV1 (arXiv 1704.04861) or EfficientNet-B0 (arXiv 1905.11946), with the
    strides of the paper's network of the same family.

    Args:
        model: Str, one of `PLAIN`.

    Returns:
        Dict of arguments of the application's constructor: "stem", "stages" and, of MobileNetV1,
        "widest_ratio".
    """
    from keras_dsnet.models import EfficientNetStage, MobileNetStage

    stages = []
    if model == "ds_mobilenet":
        for blocks, strides, channels in _MOBILENET_V1:
            stages.append(MobileNetStage(blocks, strides, (channels,)))
    else:
        for blocks, strides, channels, kernel_size, expansion in _EFFICIENTNET_B0:
            stage = EfficientNetStage(blocks, strides, (channels,), kernel_size, expansion)
            stages.append(stage)
    gated = _GATED[model]
    stages[gated] = dataclasses.replace(stages[gated], gated=True)
    fields = {"stem": (_STEM,), "stages": tuple(stages)}
    # These channels are those of rho = 1.
    return fields | ({"widest_ratio": 1.0} if model == "ds_mobilenet" else {})
