"""What a table of the paper consists of: arms that run, differences that are claimed, peers.

Nothing here imports TensorFlow.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Arm:
    """One arm of a table.

    Attributes:
        name: Str.
        program: Str, name of the program.
        config: Str, name of the flag file, with `{data}` for the name of the data.
        flags: Tuple of str, the flags that tell this arm from the others of its table.
        supernet: Str or None, name of the table and the arm whose network stage II starts from.
        hours: Float, core-hours of one seed on CIFAR-10.
        measured: Bool, whether `hours` was measured rather than estimated.
        same_as: Str or None, name of the table and the arm whose runs are those of this arm.
        needs: Tuple of pairs of the name of a flag and the name of the table and the arm whose
            folder is its value.
        data: Str or None, name of the data where it is not that of the table.
        seeds: Tuple of ints or None, the seeds of this arm where they are fewer than the table's.
        own_images: Bool, whether gates learn from images of the supernet's training, as many as
            they are given otherwise.
        ships: Str or None, the constructor in `keras_dsnet.applications` of a network that comes
            with the package: it is loaded, not trained, and `config` is the flag file that trained
            it.
        ships_on: Tuple of str, the names of the data that the network comes with weights for.
    """

    name: str
    program: str
    config: str
    flags: tuple[str, ...] = ()
    supernet: tuple[str, str] | None = None
    hours: float = 0.0
    measured: bool = False
    same_as: tuple[str, str] | None = None
    needs: tuple[tuple[str, tuple[str, str]], ...] = ()
    data: str | None = None
    seeds: tuple[int, ...] | None = None
    own_images: bool = False
    ships: str | None = None
    ships_on: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A difference of top-1 that the paper reports.

    Attributes:
        first: Str, the arm, or in a table of peers the peer, that the claim favours.
        second: Str, the other arm; "line" is the line between the static widths of the first arm's
            network at the multiply-adds of its gates. Several arms with "+" between them stand for
            the line between their networks, each of one width.
        path: Str, "slimmest" or "widest"; "gate" or "confidence" for the accuracy of a routing
            above the line; or "dynamic" for the accuracy of the gates itself.
        paper: Float or None, the difference of the paper, as a fraction. None if the paper claims
            nothing, so that no verdict is given.
        weights: Str, "saved" for the network that a run saves, which for arms with a teacher is the
            moving average, or "online" for the trained weights themselves.
        second_path: Str or None, the path of the second arm. Defaults to `path`.
        share: Float or None, in a table of peers the multiply-adds at which both are compared,
            divided by those of the first peer's widest network.
        sign: Bool, whether the paper claims that the first is above, without a figure.
    """

    first: str
    second: str
    path: str
    paper: float | None = None
    weights: str = "saved"
    second_path: str | None = None
    share: float | None = None
    sign: bool = False


@dataclasses.dataclass(frozen=True)
class Peer:
    """A line of accuracy against multiply-adds that another peer is compared with.

    Attributes:
        name: Str.
        arms: Tuple of str, the arms whose networks make the line.
        routed: Bool. False: the points of the line are the static widths of all arms. True: images
            are routed by confidence, through the narrowest and the widest path of one arm, through
            its exits, or through the networks of several arms one after the other, a cascade.
    """

    name: str
    arms: tuple[str, ...]
    routed: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A table or figure of the paper.

    Attributes:
        name: Str, as in `--table`. Supernets that several tables share have one without contrasts.
        title: Str, such as "Table 5, Fig. 6".
        claim: Str, the claim of the paper in one sentence.
        paper: Str, its figures.
        arms: Tuple of `Arm`.
        contrasts: Tuple of `Contrast`.
        seeds: Tuple of ints.
        missing: Str, what has to be built before the rest of the arms can run.
        confidence: Bool, whether routing by confidence is measured beside the gates.
        peers: Tuple of `Peer`. Their lines are compared instead of the arms themselves.
    """

    name: str
    title: str
    claim: str
    paper: str
    arms: tuple[Arm, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    seeds: tuple[int, ...] = (0, 1)
    missing: str = ""
    confidence: bool = False
    peers: tuple[Peer, ...] = ()
