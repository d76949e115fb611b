"""The runs that a table of the paper consists of, in an order in which they can be made.

Nothing here imports TensorFlow.
"""

import dataclasses
import pathlib

from keras_dsnet_recipes.lib.paper_tables import STAGE_1, STAGE_2, TABLES, Arm

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
# The images that the final collection reads once, by the name of the data.
TEST_SPLITS = {"cifar10": "test", "tiny_imagenet": "val", "digits": "test"}
# Flags that make every arm a run of seconds on the digits of scikit-learn.
_QUICK = ("--dataset=digits", "--batch_size=64", "--epochs=2", "--warmup_epochs=0")
_QUICK_NETWORK = ("--alpha=0.25", "--front_alpha=0.25")
_QUICK_GATES = ("--dataset=digits", "--batch_size=64", "--epochs=1")
_QUICK_SPLITS = {
    STAGE_1: ("--train_split=train[:60%]", "--eval_split=train[80%:]"),
    STAGE_2: ("--train_split=train[60%:80%]", "--eval_split=train[80%:]"),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One arm with one seed.

    Attributes:
        arm: An `Arm`.
        seed: Int.
        name: Str, name of the folder in the work directory.
        supernet: `Run` or None, which has to end before.
        arguments: Tuple of str, the arguments of the program but for those of folders.
    """

    arm: Arm
    seed: int
    name: str
    supernet: "Run | None"
    arguments: tuple[str, ...]


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
            if arms and arm.name not in arms:
                continue
            run = _make_run(table, arm, seed, data, quick)
            if run.supernet:
                runs.setdefault(run.supernet.name, run.supernet)
            runs.setdefault(run.name, run)
    return list(runs.values())


def _make_run(table, arm, seed, data, quick):
    if arm.same_as:
        owner, source = _find_arm(arm.same_as)
        return dataclasses.replace(_make_run(owner, source, seed, data, quick), arm=arm)
    supernet = None
    if arm.supernet:
        owner, source = _find_arm(arm.supernet)
        # Five seeds of gates share two supernets.
        supernet = _make_run(owner, source, seed % len(owner.seeds), data, quick)
    path = CONFIGS / f"{arm.config.format(data=data)}.cfg"
    flags = [f"--flagfile={path}", *arm.flags]
    if quick:
        flags += (*_QUICK, *_QUICK_NETWORK) if arm.program == STAGE_1 else _QUICK_GATES
        flags += _QUICK_SPLITS[arm.program]
    middle = "" if data == "cifar10" else f"{data}_"
    name = f"table{table.name}_{middle}{arm.name}_s{seed}"
    return Run(arm, seed, name, supernet, (*flags, f"--seed={seed}"))


def _find_arm(place):
    table = TABLES[place[0]]
    return table, next(arm for arm in table.arms if arm.name == place[1])


def is_finished(folder):
    """Returns whether a run in a folder has written its last table."""
    return (pathlib.Path(folder) / "tables" / "paths.json").is_file()


def differing_flags(configs, allowed):
    """Returns the flags, beside the allowed ones, that differ between the runs of a table.

    Args:
        configs: List of dicts, the contents of `config.json` of each run.
        allowed: Names of flags that are meant to differ.

    Returns:
        Sorted list of names. An empty list means one schedule, augmentation and data for all.
    """
    names = {name for config in configs for name in config} - set(allowed)
    # A run of an older version lacks the flags that came later.
    values = {name: [config[name] for config in configs if name in config] for name in names}
    return sorted(name for name in names if any(v != values[name][0] for v in values[name]))
