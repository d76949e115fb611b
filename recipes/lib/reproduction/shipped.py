"""Networks that come with the package, as supernets of gates."""

import pathlib


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
    """
    import keras

    from keras_dsnet import applications
    from keras_dsnet.models import with_slimming_head

    path = pathlib.Path(folder) / "supernet.keras"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        keras.utils.set_random_seed(0)
        trained = getattr(applications, application)(weights=weights)
        model = with_slimming_head(trained, gate_encoder="global")
        if model.gates_trained:
            raise ValueError(f"{application}(weights={weights!r}) has no gates of another design")
        # The routing of the paper, which the gates are trained for.
        model.routing = "gate"
        model.save(path)
    return path
