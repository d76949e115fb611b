"""A program that saves a network many times, for a soak to kill it.

Each time all variables of the network have the same value, the number of the save, so a file with
parts of two saves is found.
"""

import pathlib
import sys

SAVES = 40


def main(folder):
    """Saves a network and its weights, each `SAVES` times, under the same names.

    Args:
        folder: Path of an existing folder.
    """
    from keras_dsnet_recipes.lib.soak.programs import small_network

    network = small_network(10)
    for number in range(SAVES):
        for variable in network.variables:
            variable.assign(variable * 0 + number)
        network.save(pathlib.Path(folder) / "model.keras")
        network.save_weights(pathlib.Path(folder) / "model.weights.h5")


def mixed_files(folder):
    """Returns what is wrong with the files that a killed save has left.

    Args:
        folder: Path.

    Returns:
        List of str.
    """
    import keras
    import numpy as np
    from keras_dsnet_recipes.lib.soak.programs import small_network

    problems = []
    for path in sorted(pathlib.Path(folder).glob("model.*")):
        if path.suffix == ".keras":
            network = keras.models.load_model(path)
        else:
            network = small_network(10)
            network.load_weights(path)
        values = {float(value) for v in network.variables for value in np.ravel(v.numpy())}
        if len(values) != 1:
            problems.append(f"{path.name} has the values of {len(values)} saves")
    return problems


if __name__ == "__main__":
    main(sys.argv[1])
