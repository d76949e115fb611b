"""The tables of the paper, each with its arms, its claim and what it is compared by.

An arm is a run of a program of this folder. The flags that all arms of a table share are in a flag
file of `configs/`; an arm adds the few that tell it from the others. Nothing here imports
TensorFlow.
"""

import dataclasses

STAGE_1, STAGE_2 = "imagenet_stage1.py", "imagenet_stage2.py"


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
    """

    name: str
    program: str
    config: str
    flags: tuple[str, ...] = ()
    supernet: tuple[str, str] | None = None
    hours: float = 0.0
    measured: bool = False
    same_as: tuple[str, str] | None = None


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A difference of top-1 that the paper reports.

    Attributes:
        first: Str, the arm that the claim favours.
        second: Str, the other arm; "line" is the line between the static widths of the first arm's
            network at the multiply-adds of its gates.
        path: Str, "slimmest", "widest" or "gate".
        paper: Float or None, the difference of the paper, as a fraction. None if the paper claims
            nothing, so that no verdict is given.
        weights: Str, "saved" for the network that a run saves, which for arms with a teacher is the
            moving average, or "online" for the trained weights themselves.
    """

    first: str
    second: str
    path: str
    paper: float | None = None
    weights: str = "saved"


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
    """

    name: str
    title: str
    claim: str
    paper: str
    arms: tuple[Arm, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    seeds: tuple[int, ...] = (0, 1)
    missing: str = ""


_TABLE_5 = "{data}_table5"
_GATES = "{data}_gates_stage2"
_SGS = ("--loss_weights=0,0,1",)


def _supernet_arm(name, *flags, hours, measured=False):
    return Arm(name, STAGE_1, _TABLE_5, flags, hours=hours, measured=measured)


def _gate_arm(name, *flags):
    return Arm(name, STAGE_2, _GATES, flags, ("resnet", "supernet"), hours=0.1)


_ALL = [
    Table(
        "5",
        "Table 5, Fig. 6",
        "The targets of the moving average and of the ensemble train a better supernet than "
        "in-place distillation, and the slimmest is stable.",
        "slimmest / widest: EMA +1.6 / +0.3, ensemble +1.8 / +0.6",
        (
            _supernet_arm("in_place", "--target=in_place", hours=0.5),
            _supernet_arm("ema", "--target=ema", hours=0.5, measured=True),
            _supernet_arm("ensemble", "--target=ensemble", hours=0.6, measured=True),
        ),
        (
            Contrast("ema", "in_place", "slimmest", 0.016),
            Contrast("ema", "in_place", "widest", 0.003),
            Contrast("ensemble", "in_place", "slimmest", 0.018),
            Contrast("ensemble", "in_place", "widest", 0.006),
            Contrast("ema", "in_place", "slimmest", None, "online"),
            Contrast("ema", "in_place", "widest", None, "online"),
            Contrast("ensemble", "in_place", "slimmest", None, "online"),
            Contrast("ensemble", "in_place", "widest", None, "online"),
        ),
    ),
    Table(
        "resnet",
        "supernet of Tables 6, 7, 9",
        "",
        "",
        (Arm("supernet", STAGE_1, "{data}_ds_resnet_supernet", hours=6.0),),
    ),
    Table(
        "10",
        "Table 10",
        "Distillation at a temperature of 4 costs the slimmest accuracy and helps the widest.",
        "slimmest / widest: -10.2 / +2.0",
        (
            Arm("temperature_1", STAGE_1, _TABLE_5, same_as=("5", "ensemble")),
            _supernet_arm("temperature_4", "--temperature=4", hours=0.6),
            _supernet_arm(
                "temperature_4_unscaled",
                "--temperature=4",
                "--noscale_distillation",
                hours=0.6,
            ),
        ),
        (
            Contrast("temperature_4", "temperature_1", "slimmest", -0.102),
            Contrast("temperature_4", "temperature_1", "widest", 0.02),
            Contrast("temperature_4_unscaled", "temperature_1", "slimmest", -0.102),
            Contrast("temperature_4_unscaled", "temperature_1", "widest", 0.02),
        ),
    ),
    Table(
        "9",
        "Table 9",
        "A gate is more accurate than a static width of its supernet at similar MAdds.",
        "DS-ResNet +1.2, DS-MBNet +0.8",
        (
            _gate_arm("ds_resnet_gate", "--loss_weights=1,0.5,1"),
            Arm(
                "ds_mbnet_gate",
                STAGE_2,
                _GATES,
                ("--routes=0,3,6,9,13", "--loss_weights=1,0.5,1"),
                ("5", "in_place"),
                hours=0.1,
            ),
        ),
        (
            Contrast("ds_resnet_gate", "line", "gate", 0.012),
            Contrast("ds_mbnet_gate", "line", "gate", 0.008),
        ),
        seeds=(0, 1, 2, 3, 4),
        missing="confidence beside the gates, with thresholds that the gates' images chose",
    ),
    Table(
        "6",
        "Table 6, Fig. 7 left",
        "Gates that are trained with the SGS loss are more accurate at equal MAdds.",
        "target 76.8 at 3.6B; complexity 66.2 at 0.3B; give up 73.7 at 1.5B; try best 76.6 at "
        "3.1B; target and complexity 75.0 at 2.0B; complexity and SGS 74.6 at 1.2B; all 76.1 at "
        "2.2B",
        (
            _gate_arm("target", "--loss_weights=1,0,0"),
            _gate_arm("complexity", "--loss_weights=0,0.5,0"),
            _gate_arm("give_up", "--loss_weights=0,0,1", "--gate_strategy=give_up"),
            _gate_arm("try_best", "--loss_weights=0,0,1"),
            _gate_arm("target_complexity", "--loss_weights=1,0.5,0"),
            _gate_arm("complexity_sgs", "--loss_weights=0,0.5,1"),
            _gate_arm("all_three", "--loss_weights=1,0.5,1"),
        ),
        (
            # 1.1 points at 0.2B more MAdds, of which the line of the SGS arms explains 0.3.
            Contrast("all_three", "target_complexity", "gate", 0.008),
            *(
                Contrast(name, "line", "gate")
                for name in ("target", "complexity", "give_up", "try_best")
            ),
            *(
                Contrast(name, "line", "gate")
                for name in ("target_complexity", "complexity_sgs", "all_three")
            ),
        ),
        seeds=(0, 1, 2, 3, 4),
    ),
    Table(
        "7",
        "Table 7",
        "A slimming head that shares its encoder, and is one-hot, is the best design.",
        "one-hot: shared 76.6 at 3.1B, not shared 72.7 at 3.0B; scalar, shared: 73.6 at 2.3B",
        (
            _gate_arm("one_hot_shared", "--slimming_head=one_hot", "--share_encoder", *_SGS),
            _gate_arm("one_hot_apart", "--slimming_head=one_hot", "--noshare_encoder", *_SGS),
            _gate_arm("scalar_shared", "--slimming_head=scalar", "--share_encoder", *_SGS),
        ),
        (
            Contrast("one_hot_shared", "one_hot_apart", "gate", 0.039),
            Contrast("one_hot_shared", "scalar_shared", "gate"),
        ),
        seeds=(0, 1, 2, 3, 4),
    ),
    Table(
        "3",
        "Table 3",
        "Gates that are transferred with the weights help on another data set.",
        "with the gates' transfer above without",
        missing="--gates_from of stage II, and Tiny-ImageNet's supernet",
    ),
    Table(
        "8",
        "Table 8",
        "DS-EfficientNet is above plain EfficientNets of the same MAdds.",
        "above at two sizes",
        missing="the plain static topology of EfficientNet as an arm of stage I",
    ),
    Table(
        "2",
        "Table 2, Figs. 1, 5",
        "DS-Net is above static, slimmable and dynamic peers at equal MAdds.",
        "above all peers",
        (
            _supernet_arm("slimmest_alone", "--alone=0", hours=0.3),
            _supernet_arm("middle_alone", "--alone=6", hours=0.3),
            _supernet_arm("widest_alone", "--alone=13", hours=0.4),
        ),
        missing="plain MobileNetV1, the early exit and the cascade as arms",
    ),
]
TABLES = {table.name: table for table in _ALL}
# Figures and tables of the paper that another program measures.
ELSEWHERE = (
    (
        "Table 1",
        "Slicing is as fast as a network that was built narrow, masking and copying are not.",
        "[benchmark_slicing](mobile.md)",
    ),
    ("Table 4", "DS-Net transfers to detection.", "not run yet"),
    ("Fig. 2", "The gap between accuracy and effort in a simulation.", "not run yet"),
)
