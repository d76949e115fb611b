"""Networks that come with the package, as supernets of gates."""

import importlib
import pathlib

# Beside the network, the SHA-256 of the file of weights that it is of.
_CHECKSUM = "weights.sha256"


def save_shipped(application, weights, folder):
    """Saves a network that comes with the package where stage II looks for a supernet.

    Trained gates are replaced by new ones of the paper's design, which see the mean of the
    features, so that a run starts from untrained gates as it does after stage I.

    Args:
        application: Str, a constructor in `keras_dsnet.applications`.
        weights: Str, its argument `weights`.
        folder: Path of the work directory that stands for the one of stage I.

    Returns:
        Path of the saved network. It is not written again if it is there.

    Raises:
        ValueError: If the folder has another network, such as that of earlier weights.
    """
    import keras

    from keras_dsnet import applications
    from keras_dsnet.models import with_slimming_head
    from keras_dsnet.utils.atomic_file import atomic_file

    constructor = getattr(applications, application)
    checksum = importlib.import_module(constructor.__module__).PRESETS[weights].sha256
    path = pathlib.Path(folder) / "supernet.keras"
    known = path.with_name(_CHECKSUM)
    is_trained = path.with_name("config.json").is_file()
    is_known = known.is_file() and known.read_text(encoding="utf-8").strip() == checksum
    if is_trained or (path.is_file() and not is_known):
        raise ValueError(
            f"{folder} has another network than {application}(weights={weights!r}) of this "
            "package: remove this folder and those of the gates that start from it, or choose "
            "another --workdir"
        )
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(known) as file:
            file.write(f"{checksum}\n")
        keras.utils.set_random_seed(0)
        trained = constructor(weights=weights)
        model = with_slimming_head(trained, gate_encoder="global")
        if model.gates_trained:
            raise ValueError(f"{application}(weights={weights!r}) has no gates of another design")
        # The routing of the paper, which the gates are trained for.
        model.routing = "gate"
        model.save(path)
    return path
