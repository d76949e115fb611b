"""A saved network that programs check before they load TensorFlow: its configuration only."""

import json
import zipfile

SPEC = {
    "family": "MobileNetSpec",
    "stages": [
        {"channels": [8, 12], "gated": False},
        {"channels": [8, 16, 24, 32], "gated": True},
    ],
}


def save(folder, name="model.keras", gates=1, **changes):
    """Writes what a finished run leaves: the network's file, and the record of its data set.

    Args:
        folder: `pathlib.Path`, which is made.
        name: of the network's file.
        gates: int, of four widths each.
        **changes: of the network's configuration.

    Returns:
        The folder.
    """
    folder.mkdir(exist_ok=True)
    spec = {**SPEC, "stages": [SPEC["stages"][0], *[SPEC["stages"][1]] * gates]}
    config = {"spec": spec, "input_shape": [32, 32, 3], "classes": 10, "include_top": True}
    content = {"class_name": "DynamicSlimmableNetwork", "config": config | changes}
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("config.json", json.dumps(content))
    run = {"dataset": "digits", "data_dir": None, "train_split": None, "eval_split": None}
    (folder / "config.json").write_text(json.dumps(run))
    return folder


def save_detector(folder, gates=1):
    """Writes the network's file of a finished run of a detector; see `save`."""
    save(folder, gates=gates)
    with zipfile.ZipFile(folder / "model.keras") as archive:
        backbone = json.loads(archive.read("config.json"))
    (folder / "model.keras").unlink()
    content = {"class_name": "FSSD", "config": {"backbone": backbone, "classes": 3}}
    with zipfile.ZipFile(folder / "detector.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(content))
    return folder
