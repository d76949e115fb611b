"""The TFLite files that benchmark_mobile.py compares."""

import pathlib

import numpy as np

MOBILENETS = {f"mobilenet_v1_{alpha}": alpha for alpha in (0.5, 0.75, 1.0)}
REPRESENTATIVE_IMAGES = 8
_HEADS = ("w1", "w2", "w3", "w1_slimming")


def randomise(network, seed=0):
    """Gives every variable random values, with statistics different per width.

    A new network hides costs: its equal statistics would let widths share what trained ones do not.
    """
    generator = np.random.default_rng(seed)
    for variable in network.variables:
        if "variance" in variable.name:
            variable.assign(generator.uniform(0.5, 2.0, variable.shape))
        elif "kernel" not in variable.name:
            # Heads of many hidden units would otherwise tell images apart by rounding alone.
            scale = 0.1 if variable.name not in _HEADS else 0.5 * variable.shape[0] ** -0.5
            variable.assign_add(generator.normal(scale=scale, size=variable.shape))
    network.gates_trained = True


class MobileFiles:
    """Makes the files of one network and quantisation in a folder, each when it is asked for.

    Args:
        network: a `DynamicSlimmableNetwork`.
        routes: tuple of widths; None: no routed file is asked for.
        quantize: as in `model.export`.
        folder: where the files go.
        reuse: bool: take a file that is there already, of an earlier run, as it is.
        shape: of an image; None: that of the network.
    """

    def __init__(self, network, routes, quantize, folder, reuse=False, shape=None):
        from keras_dsnet.export.export_routed import checked_paths

        self.network = network
        self.routes = routes
        self.quantize = quantize
        self.reuse = reuse
        self.shape = shape or network.input_shape[1:]
        self.paths = checked_paths(routes, network.num_gates) if routes else []
        self._folder = pathlib.Path(folder) / (quantize or "float32")
        self._folder.mkdir(parents=True, exist_ok=True)

    def routed(self, layout):
        """Returns the path of the routed file of a layout."""

        def make(path):
            options = {"routes": self.routes, "layout": layout, **self._options}
            self.network.export(path, format="litert", **options)

        return self._file(f"{layout}_{'_'.join(map(str, self.routes))}", make)

    def static(self, path):
        """Returns the filename of one path alone."""
        from keras_dsnet.export import export_subnetwork

        return self._file(
            f"static_{'_'.join(map(str, path))}",
            lambda filename: export_subnetwork(self.network, path, filename, **self._options),
        )

    def naive(self):
        """Returns the path of what the converter makes of a branch per route, each a whole network.

        It holds the weights once per width, and runs the front twice.
        """
        import tensorflow as tf

        from keras_dsnet.export.graphs import RoutedParts

        parts = RoutedParts(self.network, self.routes)
        models = [self.network.subnetwork(route, fold_batch_norm=True) for route in self.routes]

        def run(image):
            scores = parts.front(image)["scores"]
            position = parts.choose(0, scores, [True] * len(models))["position"]

            def branch(index):
                if index == len(models) - 1:
                    return models[index](image)
                here = position[0] <= index
                return tf.cond(here, lambda: models[index](image), lambda: branch(index + 1))

            return {"output": branch(0), "path": tf.gather(self.routes, position)}

        return self._converted(run, f"naive_{'_'.join(map(str, self.routes))}")

    def mobilenet(self, name):
        """Returns the path of a MobileNetV1, such as "mobilenet_v1_0.5"."""
        import keras

        model = keras.applications.MobileNet(
            self.shape, MOBILENETS[name], weights=None, classes=self.network.classes
        )
        return self._converted(lambda image: {"output": model(image)}, name)

    def _converted(self, function, name):
        import tensorflow as tf

        from keras_dsnet.export.conversion import convert

        images = self._images()
        samples = (lambda: ({"image": image[None]} for image in images)) if self._is_int8 else None
        inputs = {"image": tf.TensorSpec((1, *self.shape))}
        return self._file(
            name,
            lambda path: path.write_bytes(convert(function, inputs, self.quantize, samples)),
        )

    def _file(self, name, make):
        path = self._folder / f"{name}.tflite"
        if not (self.reuse and path.exists()):
            make(path)
        return path

    @property
    def _is_int8(self):
        return self.quantize == "int8"

    @property
    def _options(self):
        images = self._images() if self._is_int8 else None
        options = {"quantize": self.quantize, "input_shape": tuple(self.shape)}
        return options | {"representative_data": images}

    def _images(self):
        # Where the ranges of activations lie changes no latency.
        generator = np.random.default_rng(0)
        shape = (REPRESENTATIVE_IMAGES, *self.shape)
        return generator.normal(size=shape).astype("float32")
