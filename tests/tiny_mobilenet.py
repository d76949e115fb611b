"""The network of the authors' numbers: their DS-MobileNet with every channel list divided by 8."""

from keras_dsnet.models import MobileNetSpec, MobileNetStage

TINY_SPEC = MobileNetSpec(
    stem=(2, 3),
    stages=(
        MobileNetStage(1, 1, (4, 11)),
        MobileNetStage(2, 2, (6, 21)),
        MobileNetStage(2, 2, (12, 33)),
        MobileNetStage(6, 2, tuple(range(28, 81, 4)), gated=True),
        MobileNetStage(2, 2, tuple(range(92, 145, 4))),
    ),
    attention="sigmoid",
)
