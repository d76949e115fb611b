"""What the stages of every family have."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class NetworkStage:
    """Blocks of one width; the base of every family's stage, which says in addition `gated`.

    Args:
        blocks: int, how many.
        strides: int, of the first block.
        channels: tuple of ints, the channel options of every block's output.
    """

    blocks: int
    strides: int
    channels: tuple
