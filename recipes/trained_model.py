"""Finds the trained network that a flag names, and looks at it before TensorFlow is loaded."""

import json
import pathlib
import zipfile


def find_model(name, flag="model", filenames=("model.keras", "supernet.keras")):
    """Returns the path of the saved network that a flag names, a work directory or a file.

    Args:
        name: value of the flag.
        flag: name of the flag, for messages.
        filenames: those of a stage's networks in its work directory; the first that is there is
            taken.

    Raises:
        FileNotFoundError: there is none.
    """
    path = pathlib.Path(name)
    candidates = [path / filename for filename in filenames] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"--{flag}={name} is no .keras file and no work directory with model.keras (stage II)"
        " or supernet.keras (stage I)"
    )


def check_model(filename, flag="model"):
    """Raises a ValueError unless the file holds a network of this package; builds nothing.

    Args:
        filename: of the saved network.
        flag: name of the flag that named it, for messages.

    Returns:
        The configuration of the network, a dict as of its `get_config`.
    """
    try:
        with zipfile.ZipFile(filename) as archive:
            content = json.loads(archive.read("config.json"))
            saved, config = content["class_name"], dict(content.get("config", {}))
            damaged = archive.testzip()
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError):
        raise ValueError(f"--{flag}: {filename} is no .keras file, or is damaged") from None
    if damaged:
        raise ValueError(f"--{flag}: {filename} is damaged at {damaged}")
    if saved != "DynamicSlimmableNetwork":
        raise ValueError(
            f"--{flag}: {filename} holds a {saved}; name a DynamicSlimmableNetwork, as the recipes "
            "of the two stages save it"
        )
    if config.get("include_top") is False:
        raise ValueError(f"--{flag}: {filename} has no classifier (include_top=False)")
    return config
