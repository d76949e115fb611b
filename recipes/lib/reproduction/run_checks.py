"""Whether the runs of a table differ by the flags of their arms only."""

import json
import pathlib

from keras_dsnet_recipes.lib.reproduction.planned_runs import TEST_SPLITS

# Flags that may differ between all runs of a table.
_FREE = {"seed", "data_dir", "supernet", "checkpoint_steps", "__paths__", "jax_task"}
_FREE |= {"gates_from", "places", "weights"}


def check_runs(title, runs, configs, data):
    """Raises a ValueError unless runs are those of their arms, with all else the same.

    Args:
        title: Str, title of the table.
        runs: List of `planned_runs.Run`, supernets among them.
        configs: Dict from the names of the runs to the contents of their `config.json`.
        data: Str, the name of the data of the table.
    """
    for run in runs:
        _check_data(title, run, configs[run.name], data)
        _check_arm(run, configs[run.name])
    for config in {run.arm.config for run in runs}:
        same = [run for run in runs if run.arm.config == config]
        _check_same(title, same, configs)


def differing_flags(configs, allowed):
    """Returns the flags, beside the allowed ones, that differ between runs.

    Args:
        configs: List of dicts, the contents of `config.json` of each run.
        allowed: List of sets, for each run the names of flags that only it has.

    Returns:
        Dict from names to the sorted different values, as text. It is empty if all runs have one
        schedule, augmentation and data.
    """
    values = {}
    for config, own in zip(configs, allowed, strict=True):
        # A run of an older version lacks the flags that came later.
        for name in set(config) - own - _FREE:
            values.setdefault(name, {})[json.dumps(config[name])] = str(config[name])
    return {name: sorted(each.values()) for name, each in sorted(values.items()) if len(each) > 1}


def _check_data(title, run, config, data):
    names = set(TEST_SPLITS) - {"tiny_imagenet"}
    found = config.get("dataset")
    # The images of Tiny-ImageNet are a folder of any name.
    is_right = found not in names if data == "tiny_imagenet" else found == data
    if run.arm.data is None and found is not None and not is_right:
        raise ValueError(
            f"the runs of {title} must be on {data}. Received: {run.name} on {found}; choose "
            "another --workdir, or remove this folder"
        )


def _check_arm(run, config):
    expected = {}
    for flag in (*_all_flags(run.arguments), *run.flags):
        name, value = _flag_value(flag, config)
        expected[name] = flag, value
    for name, (flag, value) in expected.items():
        if name in config and _as_text(config[name]) != _as_text(value):
            raise ValueError(
                f"{run.name} must have {flag}, as its arm. Received: --{name} of "
                f"{_as_text(config[name])}; choose another --workdir, or remove this folder"
            )


def _all_flags(arguments):
    """Yields the flags of a command line, those of its flag files in their places."""
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name != "--flagfile":
            yield argument
            continue
        lines = pathlib.Path(value).read_text(encoding="utf-8").splitlines()
        yield from _all_flags([line.strip() for line in lines if line.startswith("--")])


def _check_same(title, runs, configs):
    own = [_own_flags(run, configs[run.name]) for run in runs]
    different = differing_flags([configs[run.name] for run in runs], own)
    if different:
        name, values = next(iter(different.items()))
        raise ValueError(
            f"the runs of {title} must have one schedule, augmentation and data. "
            f"Received: --{name} of {' and '.join(values)}"
        )


def _own_flags(run, config):
    """Returns the names of the flags that tell a run from those of other arms."""
    names = {_flag_value(flag, config)[0] for flag in run.flags}
    if run.arm.own_images:
        names.add("train_split")
    if "topology" in names:
        # A plain network has one width, which is trained alone.
        names.add("alone")
    return names


def _flag_value(flag, config):
    """Returns the name and the value of a flag of an arm, such as `--noshare_encoder`."""
    name, has_value, value = flag.lstrip("-").partition("=")
    if has_value:
        return name, value
    if name not in config and name.removeprefix("no") in config:
        return name.removeprefix("no"), False
    return name, True


def _as_text(value):
    """Returns a flag's value in one form, whether it is text or was parsed."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(map(_as_text, value))
    if isinstance(value, str) and "," in value:
        return _as_text(value.split(","))
    try:
        return f"{float(value):g}"
    except ValueError:
        return value
