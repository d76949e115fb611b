"""The formats that Keras exports to by itself."""

import keras

_FORMATS = ("tf_saved_model", "onnx", "openvino", "torch")


def keras_export(network, filepath, format, verbose=None, **options):
    """Writes what `keras.Model.export` makes of a network, its gates included.

    Args:
        network: a `DynamicSlimmableNetwork`.
        filepath: of the file or folder.
        format: "tf_saved_model", "onnx", "openvino" or "torch".
        verbose: bool; None: Keras's default.
        **options: of the format.

    Raises:
        ValueError: on another format, or one that cannot hold a network that chooses its path.
        ImportError: where the format needs a package that is not installed.
        OSError: the file cannot be written.
    """
    if format not in _FORMATS:
        raise ValueError(
            f"`format` must be 'litert' or one of {', '.join(map(repr, _FORMATS))}. "
            f"Received: format={format!r}"
        )
    # Keras knows it only of a model that was called.
    images = keras.InputSpec(dtype="float32", shape=network.input_shape)
    options.setdefault("input_signature", [images])
    try:
        keras.Model.export(network, str(filepath), format=format, verbose=verbose, **options)
    except OSError:
        raise
    except ImportError as error:
        raise ImportError(
            f"format={format!r} needs a package that is not installed: {error}"
        ) from error
    except Exception as error:
        line = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(
            f"Keras cannot export this network to format={format!r}: {line.rstrip('.')}. Where "
            "a format cannot hold a network that chooses its path, export one path: "
            "`model.subnetwork(path).export(...)`"
        ) from error
