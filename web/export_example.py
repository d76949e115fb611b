"""Exports the example of the page from the weights that come with the package.

python web/export_example.py web/dist/example.tflite
"""

import pathlib
import sys

from keras_dsnet.applications import DSMobileNet

if __name__ == "__main__":
    pathlib.Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
    # Routing by confidence has thresholds as well as widths, so the page shows all its sliders.
    network = DSMobileNet(weights="cifar10", routing="confidence", confidence_steps=(0, 6, 13))
    network.export(sys.argv[1], format="litert", verbose=False)
