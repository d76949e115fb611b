"""The tables of the paper as arms that can be run.

An arm is a run of a program of this folder. The flags that all arms of a table share are in a flag
file of `configs/`; an arm adds the few that tell it from the others. Nothing here imports
TensorFlow.
"""

from keras_dsnet_recipes.lib.reproduction.table_parts import Arm, Contrast, Peer, Table

STAGE_1, STAGE_2 = "imagenet_stage1.py", "imagenet_stage2.py"
EARLY_EXIT = "early_exit.py"


_TABLE_5 = "{data}_table5"
_GATES = "{data}_gates_stage2"
_TRANSFER = "{data}_ds_resnet_transfer"
_SGS = ("--loss_weights=0,0,1",)
_S_LOSSES = ("--loss_weights=0,0.5,1",)
_ALL_LOSSES = ("--loss_weights=1,0.5,1",)


def _supernet_arm(name, *flags, hours, measured=False):
    return Arm(name, STAGE_1, _TABLE_5, flags, hours=hours, measured=measured)


def _gate_arm(name, *flags, hours=0.1, own_images=False, same_as=None):
    supernet = ("resnet", "supernet")
    more = {"own_images": own_images, "same_as": same_as}
    return Arm(name, STAGE_2, _GATES, flags, supernet, hours=hours, **more)


def _mbnet_gate_arm(name, *flags):
    return Arm(name, STAGE_2, _GATES, flags, ("shipped", "supernet"), hours=0.1)


def _against_confidence(name):
    return Contrast(name, name, "gate", second_path="confidence")


def _transfer_arm(name, *flags, hours, pretrained=True):
    needs = (("weights", ("pretraining", "supernet")),) if pretrained else ()
    return Arm(name, STAGE_1, _TRANSFER, flags, hours=hours, needs=needs, seeds=(0, 1))


def _transferred_gate(name, *flags, transfer=True):
    needs = (("gates_from", ("pretraining", "gate")),) if transfer else ()
    return Arm(name, STAGE_2, f"{_TRANSFER}_stage2", flags, ("3", "supernet"), 0.1, needs=needs)


def _plain_arms(name, config, hours, *flags):
    """Returns an arm for each size of a plain topology, whose name ends in its multiplier."""
    return tuple(
        Arm(
            f"{name}_{alpha:g}",
            STAGE_1,
            config,
            ("--topology=plain", f"--alpha={alpha:g}", f"--front_alpha={alpha:g}", *flags),
            hours=each,
        )
        for alpha, each in hours.items()
    )


def _at_shares(first, second, claims):
    """Returns contrasts of peers at several shares of the widest's MAdds.

    Args:
        first: Str, the peer that the claim favours.
        second: Str, the other peer.
        claims: Dict from the share to the difference of the paper, `True` for a claim without a
            figure or None for none.
    """
    return tuple(
        Contrast(
            first,
            second,
            f"within {share:g} of the widest",
            None if claim is True else claim,
            share=share,
            sign=claim is True,
        )
        for share, claim in claims.items()
    )


# Without a teacher no arm is averaged, as the best supernet of Table 5 is not.
_IN_PLACE = "--target=in_place"
_RELU = ("--activation=relu", "--attention=none", _IN_PLACE)
# At the strides of the flag file these have the multiply-adds of the slimmest, a middle and the
# widest path of DS-MBNet, to 3 %.
_MOBILENETS = {0.1875: 0.1, 0.25: 0.15, 0.3125: 0.2}
_EFFICIENTNETS = {0.5: 0.2, 0.65: 0.25}
_PLAIN = _plain_arms("mobilenet_v1", _TABLE_5, _MOBILENETS, *_RELU)
_ATTENDED = _plain_arms("attended_v1", _TABLE_5, _MOBILENETS, _IN_PLACE)
_PLAIN_B0 = _plain_arms(
    "efficientnet", "{data}_table8", _EFFICIENTNETS, "--attention=sigmoid", _IN_PLACE
)


def _names(arms):
    return tuple(arm.name for arm in arms)


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
        (
            Arm(
                "supernet",
                STAGE_1,
                "{data}_ds_resnet_supernet",
                hours=4.8,
                measured=True,
                ships="DSResNet50",
                ships_on=("cifar10",),
            ),
        ),
        seeds=(0,),
    ),
    Table(
        "shipped",
        "DS-MBNet of Table 9",
        "",
        "",
        (
            Arm(
                "supernet",
                STAGE_1,
                "{data}_stage1",
                ships="DSMobileNet",
                ships_on=("cifar10", "tiny_imagenet"),
            ),
        ),
        seeds=(0,),
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
        "DS-ResNet-S 74.6 at 1.2B, its supernet 73.4 at 1.1B; DS-MBNet-S 70.1 at 153M, its "
        "supernet 69.3 at 140M",
        (
            # The networks of the paper's table are both S.
            _gate_arm("ds_resnet_s_gate", *_S_LOSSES, same_as=("6", "complexity_sgs")),
            _gate_arm("ds_resnet_s_gate_own_images", *_S_LOSSES, own_images=True),
            _mbnet_gate_arm("ds_mbnet_s_gate", "--routes=0,1,2,3", "--loss_weights=1,0.5,1"),
            _mbnet_gate_arm("ds_mbnet_gate", "--routes=0,3,6,9,13", "--loss_weights=1,0.5,1"),
            # The design of the gate that ships, chosen on the images of every choice: a weight of
            # 0.01 with the paper's estimator and encoder still sends all images to width 0.
            _mbnet_gate_arm(
                "ds_mbnet_gate_chosen",
                "--routes=0,13",
                "--loss_weights=1,0.025,0",
                "--gate_encoder=regions",
                "--estimator=exact",
            ),
        ),
        (
            # 1.2 points at 0.1B more MAdds, of which the line of Table 6's SGS arms explains 0.15,
            # and 0.8 at 13M more, of which the widths that the authors released explain 0.2.
            Contrast("ds_resnet_s_gate", "line", "gate", 0.01),
            Contrast("ds_mbnet_s_gate", "line", "gate", 0.006),
            Contrast("ds_mbnet_gate", "line", "gate"),
            Contrast("ds_mbnet_gate_chosen", "line", "gate"),
            Contrast("ds_resnet_s_gate_own_images", "ds_resnet_s_gate", "gate"),
            Contrast("ds_resnet_s_gate", "line", "confidence"),
            Contrast("ds_mbnet_s_gate", "line", "confidence"),
            Contrast("ds_mbnet_gate", "line", "confidence"),
            _against_confidence("ds_resnet_s_gate"),
            _against_confidence("ds_mbnet_s_gate"),
            _against_confidence("ds_mbnet_gate"),
            Contrast("ds_mbnet_gate_chosen", "line", "confidence"),
            _against_confidence("ds_mbnet_gate_chosen"),
        ),
        seeds=(0, 1, 2, 3, 4),
        confidence=True,
    ),
    Table(
        "6",
        "Table 6, Fig. 7 left",
        "Gates that are trained with the SGS loss are more accurate at equal MAdds, and those that "
        "try best more than those that give up.",
        "target 76.8 at 3.6B; complexity 66.2 at 0.3B; give up 73.7 at 1.5B; try best 76.6 at "
        "3.1B; target and complexity 75.0 at 2.0B; complexity and SGS 74.6 at 1.2B; all 76.1 at "
        "2.2B",
        (
            _gate_arm("target", "--loss_weights=1,0,0"),
            _gate_arm("complexity", "--loss_weights=0,0.5,0"),
            _gate_arm("give_up", "--loss_weights=0,0,1", "--gate_strategy=give_up"),
            _gate_arm("try_best", "--loss_weights=0,0,1"),
            _gate_arm("target_complexity", "--loss_weights=1,0.5,0"),
            _gate_arm("complexity_sgs", *_S_LOSSES),
            _gate_arm("all_three", *_ALL_LOSSES),
        ),
        (
            # 1.1 points at 0.2B more MAdds, of which the line of the SGS arms explains 0.3.
            Contrast("all_three", "target_complexity", "gate", 0.008),
            # The line of the SGS arms is 1.3 points above the arm that gives up, at its MAdds.
            Contrast("try_best", "give_up", "gate", 0.013),
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
            # A one-hot head that shares its encoder is that of the supernet.
            _gate_arm("one_hot_shared", *_SGS, same_as=("6", "try_best")),
            _gate_arm("one_hot_apart", "--slimming_head=one_hot", "--noshare_encoder", *_SGS),
            _gate_arm("scalar_shared", "--slimming_head=scalar", "--share_encoder", *_SGS),
        ),
        (
            Contrast("one_hot_shared", "one_hot_apart", "gate", 0.039),
            # The line of Table 6's SGS arms has 76.2 at the MAdds of the scalar head.
            Contrast("one_hot_shared", "scalar_shared", "gate", 0.025),
        ),
        seeds=(0, 1, 2, 3, 4),
    ),
    Table(
        "pretraining",
        "pretraining of Table 3",
        "",
        "",
        (
            Arm(
                "supernet",
                STAGE_1,
                "{data}_ds_resnet_supernet",
                hours=2.0,
                data="tiny_imagenet",
            ),
            Arm(
                "gate",
                STAGE_2,
                _GATES,
                supernet=("pretraining", "supernet"),
                hours=0.1,
                data="tiny_imagenet",
            ),
        ),
        seeds=(0,),
    ),
    Table(
        "3",
        "Table 3",
        "Gates that are transferred with the weights help on another data set.",
        "without transfer of the gates 97.4 at 1.7B, with it 97.8 at 1.6B",
        (
            _transfer_arm("supernet", hours=1.0),
            _transfer_arm("from_scratch", pretrained=False, hours=1.0),
            _transfer_arm("static_slimmest", "--alone=0", hours=0.25),
            _transfer_arm("static_middle", "--alone=1", hours=0.35),
            _transfer_arm("static_widest", "--alone=3", hours=0.5),
            _transferred_gate("without_transfer", transfer=False),
            _transferred_gate("with_transfer"),
            # A rate of 0 leaves the gates as they came.
            _transferred_gate("transfer_only", "--learning_rate=0", "--epochs=1"),
        ),
        (
            Contrast("with_transfer", "without_transfer", "gate", 0.004),
            Contrast("transfer_only", "without_transfer", "gate"),
            Contrast("with_transfer", "line", "gate"),
            Contrast("without_transfer", "line", "gate"),
            Contrast("with_transfer", "static_slimmest+static_middle+static_widest", "dynamic"),
            Contrast("with_transfer", "static_widest", "dynamic", second_path="widest"),
            Contrast("with_transfer", "from_scratch", "dynamic", second_path="widest"),
            Contrast("supernet", "from_scratch", "widest"),
        ),
        seeds=(0, 1, 2, 3, 4),
    ),
    Table(
        "beyond",
        "Beyond the paper",
        "Gates gain more with soft targets, an encoder of regions, or exact gradients.",
        "none",
        (
            _gate_arm("hard_targets", *_SGS, same_as=("6", "try_best")),
            _gate_arm("soft_targets", "--soft_targets", *_SGS),
            _gate_arm("regions", "--gate_encoder=regions", *_SGS),
            _gate_arm("soft_regions", "--gate_encoder=regions", "--soft_targets", *_SGS),
            _gate_arm("all_losses", *_ALL_LOSSES, same_as=("6", "all_three")),
            _gate_arm("exact_gradients", "--estimator=exact", *_ALL_LOSSES, hours=0.3),
        ),
        (
            Contrast("soft_targets", "hard_targets", "gate", sign=True),
            Contrast("regions", "hard_targets", "gate", sign=True),
            Contrast("soft_regions", "hard_targets", "gate"),
            Contrast("exact_gradients", "all_losses", "gate", sign=True),
            *(
                Contrast(name, "line", "gate")
                for name in ("hard_targets", "soft_targets", "regions", "soft_regions")
            ),
            *(Contrast(name, "line", "gate") for name in ("all_losses", "exact_gradients")),
        ),
        seeds=(0, 1, 2, 3, 4),
    ),
    Table(
        "8",
        "Table 8",
        "DS-EfficientNet is above plain EfficientNets of the same MAdds.",
        "76.7 against 76.0 at 400M, 75.4 against 74.6 at 270M",
        (
            Arm("ds_efficientnet", STAGE_1, "{data}_table8", (_IN_PLACE,), hours=0.5),
            *_PLAIN_B0,
        ),
        (
            *_at_shares("ds_efficientnet", "efficientnet", {0.45: 0.008, 0.65: 0.007}),
            *_at_shares("ds_efficientnet", "static_widths", {0.45: None, 0.65: None}),
        ),
        peers=(
            Peer("ds_efficientnet", ("ds_efficientnet",), routed=True),
            Peer("static_widths", ("ds_efficientnet",)),
            Peer("efficientnet", _names(_PLAIN_B0)),
        ),
    ),
    Table(
        "2",
        "Table 2, Figs. 1, 5",
        "DS-Net is above static, slimmable and dynamic peers at equal MAdds.",
        "DS-MBNet 70.1 at 153M, 72.8 at 319M and 74.5 at 565M, MobileNetV1 63.3, 68.4 and 70.9, "
        "US-Net 64.2, 69.5 and 71.8 at nearly the same",
        (
            Arm("ds_mbnet", STAGE_1, _TABLE_5, hours=0.5, same_as=("5", "in_place")),
            Arm("ds_mbnet_ensemble", STAGE_1, _TABLE_5, hours=0.6, same_as=("5", "ensemble")),
            *_PLAIN,
            *_ATTENDED,
            _supernet_arm("slimmest_alone", "--alone=0", _IN_PLACE, hours=0.15),
            _supernet_arm("middle_alone", "--alone=6", _IN_PLACE, hours=0.2),
            _supernet_arm("widest_alone", "--alone=13", _IN_PLACE, hours=0.25),
            # The flag file is that of all arms, and one of its flags is for supernets only.
            Arm("early_exit", EARLY_EXIT, _TABLE_5, ("--undefok=num_random",), hours=0.35),
        ),
        (
            # The paper's 319M are 0.56 of its widest.
            *_at_shares("ds_mbnet", "mobilenet_v1", {0.5: 0.044, 0.75: True}),
            *_at_shares("ds_mbnet", "us_net", {0.5: 0.033, 0.75: True}),
            *_at_shares("ds_mbnet", "early_exit", {0.5: True, 0.75: True}),
            *_at_shares("ds_mbnet", "cascade", {0.5: True, 0.75: True}),
            *_at_shares("ds_mbnet", "ds_mbnet_ensemble", {0.5: None, 0.75: None}),
            # The steps from a plain network to a routed one: attention, channels, method.
            *_at_shares("attended_v1", "mobilenet_v1", {0.75: None}),
            *_at_shares("alone", "attended_v1", {0.75: None}),
            *_at_shares("us_net", "alone", {0.75: None}),
        ),
        peers=(
            Peer("ds_mbnet", ("ds_mbnet",), routed=True),
            Peer("ds_mbnet_ensemble", ("ds_mbnet_ensemble",), routed=True),
            # US-Net's rule, in-place distillation, is the best target of Table 5 here.
            Peer("us_net", ("ds_mbnet",)),
            Peer("alone", ("slimmest_alone", "middle_alone", "widest_alone")),
            Peer("mobilenet_v1", _names(_PLAIN)),
            Peer("attended_v1", _names(_ATTENDED)),
            Peer("early_exit", ("early_exit",), routed=True),
            Peer("cascade", ("slimmest_alone", "widest_alone"), routed=True),
        ),
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
    (
        "Fig. 2",
        "The best effort for each image is above the best effort for all, in a simulation.",
        "`notebooks/figure_2.ipynb`, [picture](reproduction/figure_2.png)",
    ),
)
