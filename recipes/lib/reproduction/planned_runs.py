"""The runs that a table of the paper consists of, in an order in which they can be made.

Nothing here imports TensorFlow.
"""

import dataclasses
import pathlib

from keras_dsnet_recipes.lib.reproduction.paper_tables import EARLY_EXIT, STAGE_1, STAGE_2, TABLES
from keras_dsnet_recipes.lib.reproduction.table_parts import Arm

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
# The images that the final collection reads once, by the name of the data.
TEST_SPLITS = {"cifar10": "test", "tiny_imagenet": "val", "digits": "test"}
# Flags that make every arm a run of seconds on the digits of scikit-learn, and the pretraining of
# an arm one on distorted digits.
_QUICK = ("--image_size=32", "--batch_size=64", "--epochs=2", "--warmup_epochs=0")
# The multipliers come before the flags of an arm, which may set others. At 0.25 some of the 20
# widths of DS-EfficientNet are equal.
_QUICK_NETWORK = ("--alpha=0.25", "--front_alpha=0.25")
_QUICK_NETWORKS = {"{data}_table8": ("--alpha=0.5", "--front_alpha=0.5")}
_QUICK_GATES = ("--image_size=32", "--batch_size=64", "--epochs=1")
_QUICK_SPLITS = {
    STAGE_1: ("--train_split=train[:60%]", "--eval_split=train[80%:]"),
    EARLY_EXIT: ("--train_split=train[:60%]", "--eval_split=train[80%:]"),
    STAGE_2: ("--train_split=train[60%:80%]", "--eval_split=train[80%:]"),
}
# As many images as gates have otherwise, of those that the supernets were trained on.
_OWN_IMAGES = {"digits": "train[:20%]"}
_OWN_IMAGES |= dict.fromkeys(("cifar10", "tiny_imagenet"), "train[:5000]")


@dataclasses.dataclass(frozen=True)
class Run:
    """One arm with one seed.

    Attributes:
        arm: An `Arm`.
        seed: Int.
        name: Str, name of the folder in the work directory.
        supernet: `Run` or None, which has to end before.
        arguments: Tuple of str, the arguments of the program but for those of folders.
        needs: Tuple of pairs of the name of a flag and the `Run` whose folder is its value. These
            runs have to end before.
        data: Str, name of the data of this run.
        flags: Tuple of str, the flags that tell this run from those of other arms: those of `arm`,
            or of the arm whose runs it shares.
    """

    arm: Arm
    seed: int
    name: str
    supernet: "Run | None"
    arguments: tuple[str, ...]
    needs: tuple[tuple[str, "Run"], ...] = ()
    data: str = "cifar10"
    flags: tuple[str, ...] = ()

    @property
    def ships(self) -> bool:
        """Whether the network of this run comes with the package."""
        return self.data in self.arm.ships_on


def plan(table, data="cifar10", arms=None, seeds=None, quick=False):
    """Returns the runs of a table in the order in which they can be made.

    Args:
        table: A `Table`.
        data: Str, a key of `TEST_SPLITS`.
        arms: Names of the arms. Defaults to all.
        seeds: Ints. Defaults to those of the table.
        quick: Bool, whether to train for seconds on digits.

    Returns:
        List of `Run`, supernets of other tables among them.

    Raises:
        ValueError: If the table has no such arm.
    """
    known = {arm.name: arm for arm in table.arms}
    for name in arms or ():
        if name not in known:
            raise ValueError(
                f"--arms must be some of {','.join(known) or 'none'} for --table={table.name}. "
                f"Received: --arms={','.join(arms)}"
            )
    runs = {}
    for seed in table.seeds if seeds is None else seeds:
        for arm in table.arms:
            if (arms and arm.name not in arms) or (arm.seeds and seed not in arm.seeds):
                continue
            _add(_make_run(table, arm, seed, data, quick), runs)
    return list(runs.values())


def _add(run, runs):
    for other in (run.supernet, *(needed for _, needed in run.needs)):
        if other:
            _add(other, runs)
    runs.setdefault(run.name, run)


def _make_run(table, arm, seed, data, quick):
    if arm.same_as:
        owner, source = _find_arm(arm.same_as)
        return dataclasses.replace(_make_run(owner, source, seed, data, quick), arm=arm)

    def other(place):
        owner, source = _find_arm(place)
        # Five seeds of gates share two supernets.
        seeds = source.seeds or owner.seeds
        return _make_run(owner, source, seeds[seed % len(seeds)], data, quick)

    supernet = other(arm.supernet) if arm.supernet else None
    needs = tuple((name, other(place)) for name, place in arm.needs)
    data = arm.data or data
    path = CONFIGS / f"{arm.config.format(data=data)}.cfg"
    flags = [f"--flagfile={path}", *arm.flags]
    if quick:
        flags.append(f"--dataset={'distorted_digits' if arm.data else 'digits'}")
        if arm.program != STAGE_2:
            flags[1:1] = _QUICK_NETWORKS.get(arm.config, _QUICK_NETWORK)
        flags += _QUICK_GATES if arm.program == STAGE_2 else _QUICK
        flags += _QUICK_SPLITS[arm.program]
    if arm.own_images:
        flags.append(f"--train_split={_OWN_IMAGES['digits' if quick else data]}")
    # Runs of seconds must never be taken for those of the table.
    middle = ("digits_" if quick else "") + ("" if data == "cifar10" else f"{data}_")
    name = f"table{table.name}_{middle}{arm.name}_s{seed}"
    flags.append(f"--seed={seed}")
    return Run(arm, seed, name, supernet, tuple(flags), needs, data, arm.flags)


def arm_of(name):
    """Returns the name of the arm of a run, such as "ema" of "table5_ema_s0".

    Args:
        name: Str, the name of a `Run`.
    """
    return without_data(name.partition("_")[2]).rpartition("_s")[0]


def without_data(name):
    """Returns the name of a run, without its table, less the names of the data it begins with."""
    for data in ("digits", "tiny_imagenet"):
        name = name.removeprefix(f"{data}_")
    return name


def _find_arm(place):
    table = TABLES[place[0]]
    return table, next(arm for arm in table.arms if arm.name == place[1])


def is_finished(folder):
    """Returns whether a run in a folder has written its last table."""
    return (pathlib.Path(folder) / "tables" / "paths.json").is_file()
