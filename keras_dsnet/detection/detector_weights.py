"""What a file of weights says of its detector."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from keras_dsnet.models import serialization

# Weights fit detectors in which these differ by their shapes, and mean nothing there.
_FIELDS = ("levels", "channels", "pyramid", "scales", "aspect_ratios", "head", "norm", "activation")


def weights_config(detector: Any) -> dict:
    """Returns what the weights of a detector depend on beside its backbone, as JSON has it.

    Args:
        detector: `FSSD`.
    """
    config = detector.get_config()
    return json.loads(json.dumps({name: config[name] for name in _FIELDS}))


def check_detector_weights(detector: Any, filepath: Any, skip_mismatch: bool) -> None:
    """Refuses a file of weights that describes another detector, before anything is loaded.

    Args:
        detector: `FSSD`.
        filepath: Path of the file. Files without a description are not checked.
        skip_mismatch: Bool, whether layers of another shape may be left out. A difference is then
            only warned of.

    Raises:
        ValueError: If the file is of another detector.
    """
    facts = serialization.read_stored(filepath, "vars/facts") or {}
    theirs, ours = facts.get("detector") or {}, weights_config(detector)
    pairs = [(name, theirs[name], ours[name]) for name in _FIELDS if name in theirs]
    difference = next((pair for pair in pairs if pair[1] != pair[2]), None)
    if difference is None:
        config = serialization.read_stored(filepath, "backbone/vars/config")
        difference = serialization.find_difference(config, detector.backbone)
        if difference is not None:
            difference = (f"backbone.{difference[0]}", *difference[1:])
    serialization.report_difference(difference, "detector", skip_mismatch)


@contextlib.contextmanager
def settings_kept(detector: Any) -> Iterator[None]:
    """Gives a detector back its settings of before if its weights fail to load.

    Keras reads the settings of a file before the layers, which may not fit.

    Args:
        detector: `FSSD`.
    """
    before, backbone = detector.confidence_config(), detector.backbone.get_config()
    class_names = detector.class_names
    try:
        yield
    except Exception:
        serialization.restore_facts(detector.backbone, backbone)
        for name in ("confidence_steps", "thresholds", "routing", "confidence"):
            setattr(detector, name, before[name])
        detector.class_names = class_names
        raise
