"""Quantisation-aware training of one sub-network."""

import math
import os
from typing import Any

import keras
import tensorflow as tf

from keras_dsnet.export.conversion import convert
from keras_dsnet.export.export_subnetwork import finish_file
from keras_dsnet.export.options import check_network, check_shape, check_target
from keras_dsnet.models import DynamicSlimmableNetwork
from keras_dsnet.utils.argument_checks import check_int, check_number
from keras_dsnet.utils.atomic_file import atomic_file
from keras_dsnet.utils.batches import batch_count, labelled_batches

CALIBRATION_IMAGES = 512


def quantize_aware(
    model: DynamicSlimmableNetwork,
    path: Any,
    dataset: Any,
    *,
    epochs: int = 1,
    steps_per_epoch: int | None = None,
    learning_rate: float = 1e-4,
    distillation: float = 1.0,
    temperature: float = 4.0,
    input_shape: tuple[int, int, int] | None = None,
    filename: str | os.PathLike | None = None,
    verbose: bool = True,
) -> bytes:
    """Fine-tunes one path for int8 and returns it as a TFLite file.

    In training the sub-network rounds its kernels and activations as the file will
    (tensorflow-model-optimization), and adapts to that by Adam with a cosine schedule. `model` does
    not change.

    The file has builtin operators, a batch of 1 and one signature, "serving_default". It takes
    `image`, float32 `[1, height, width, 3]`, preprocessed, and gives `output`, float32
    `[1, classes]`. Everything in between is int8, except operators that TFLite cannot quantise,
    such as group normalisation.

    Args:
        model: A `DynamicSlimmableNetwork` with a classifier that ends in a softmax or in logits.
        path: The path to train, as in a call of the network.
        dataset: A `tf.data.Dataset` or another iterable of batches, as `fit` takes them: float32
            images `[batch, height, width, 3]`, preprocessed and augmented as in training, and class
            numbers or probabilities as labels. The ranges of the activations are measured on its
            first 512 images before the training.
        epochs: Number of epochs. Each one continues where the one before it ended. Defaults to 1.
        steps_per_epoch: Number of batches per epoch. Defaults to `None`, which takes the length of
            the data set.
        learning_rate: Learning rate of the first step. Defaults to 1e-4.
        distillation: Weight of the loss against the float sub-network's probabilities, from 0 to 1.
            The loss against the labels has the rest of the weight. Labels help a network that is
            not fully trained. A fully trained network's file gets closest to the network without
            them. Defaults to 1.
        temperature: Both networks' logits are divided by this for the distillation. A network that
            fits its training images is nearly certain of their classes, so at a temperature of 1
            most of the gradient is noise. Defaults to 4.
        input_shape: `(height, width, 3)` of the file's images. Defaults to the network's shape, and
            is required if the network takes images of any size.
        filename: Path ending in `.tflite`, to which the file is written too. An old file there
            survives a failure. Defaults to `None`.
        verbose: Whether to show a progress bar. Defaults to `True`.

    Returns:
        The bytes of the file.

    Raises:
        ValueError: If an argument or a batch does not fit, the network cannot be quantised, or the
            loss becomes infinite or NaN.
        OSError: If the file cannot be written.

    Example:

    ```python
    import numpy as np

    from keras_dsnet.export import quantize_aware
    from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage

    spec = MobileNetSpec(stem=(4, 6), stages=(MobileNetStage(1, 2, (8, 16), gated=True),))
    model = DynamicSlimmableNetwork(spec, (16, 16, 3), classes=5)
    images = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype("float32")
    labels = np.zeros(8, "int32")
    content = quantize_aware(model, "slimmest", [(images, labels)], verbose=False)
    ```
    """
    check_network(model)
    _check_classifier(model)
    shape = check_shape(model, input_shape)
    path = model.resolve_path(path)
    # Raises if `dataset` is not a data set, and reads nothing yet.
    labelled_batches(dataset, shape, model.classes, 1)
    steps = _check_steps(dataset, epochs, steps_per_epoch)
    check_number("learning_rate", learning_rate, "a positive number", lambda value: value > 0)
    check_number("temperature", temperature, "a positive number", lambda value: value > 0)
    check_number("distillation", distillation, "from 0 to 1", lambda value: 0 <= value <= 1)
    if filename is not None:
        check_target(filename)
    # Raises if the first batch does not fit, before the work starts.
    next(_repeated_batches(dataset, shape, model.classes, 1))

    # The import takes seconds.
    from keras_dsnet.export.qat_model import fake_quantized, legacy_model

    teacher = legacy_model(_logits_model(model, path), shape)
    student = fake_quantized(teacher, _calibration_images(dataset, shape, model.classes))
    step = _training_step(student, teacher, steps, learning_rate, distillation, temperature)
    batches = _repeated_batches(dataset, shape, model.classes, steps)
    _fine_tune(step, batches, steps, verbose)

    def infer(image):
        logits = student(image, training=False)
        is_softmax = model.classifier_activation == "softmax"
        return {"output": tf.nn.softmax(logits) if is_softmax else logits}

    # The ranges are part of the graph, so the converter needs no images.
    content = convert(infer, {"image": tf.TensorSpec((1, *shape))}, "int8")
    content = finish_file(content, model)
    if filename is not None:
        with atomic_file(filename, "wb") as file:
            file.write(content)
    return content


def _check_classifier(model):
    if hasattr(model, "anchors"):
        raise ValueError(
            "`quantize_aware` trains classifiers. A detector's file of quantize='int8' is measured "
            f"on images. Received: a {type(model).__name__}"
        )
    if not model.include_top or model.classifier_activation not in ("softmax", "linear"):
        top = model.classifier_activation if model.include_top else None
        raise ValueError(
            "Quantisation-aware training needs a network that ends in a softmax or in logits. "
            f"Received: include_top={model.include_top}, classifier_activation={top!r}"
        )


def _check_steps(dataset, epochs, steps_per_epoch):
    """Returns the number of steps of all epochs."""
    epochs = check_int("epochs", epochs, 1)
    if steps_per_epoch is not None:
        return epochs * check_int("steps_per_epoch", steps_per_epoch, 1)
    steps_per_epoch = batch_count(dataset)
    if steps_per_epoch is None:
        raise ValueError(
            "`dataset` has no length, or no end: pass `steps_per_epoch`. "
            "Received: steps_per_epoch=None"
        )
    return epochs * steps_per_epoch


def _repeated_batches(dataset, shape, classes, count):
    """Yields `count` checked batches, and reads the data set again each time it ends."""
    number = 0
    while number < count:
        first = number
        for batch in labelled_batches(dataset, shape, classes, count - number):
            number += 1
            yield batch
        if number == first:
            raise ValueError(
                f"`dataset` has no batches: it ended after {number}. An iterator can be read only "
                "once: pass an iterable or a function that makes an iterator."
            )


def _logits_model(model, path):
    """Returns the sub-network of a path as a plain model without its softmax.

    Batch norm is folded before the training, so that the training rounds the kernels of the file.
    Unfolded, its statistics would follow small batches of a rounded network. On CIFAR-10 that moved
    the outputs away from the float network's even at a learning rate of zero, and training ended
    further from them than with folded batch norm.
    """
    plain = model.subnetwork(path, fold_batch_norm=True)
    if model.classifier_activation == "softmax":
        return keras.Model(plain.input, plain.layers[-1].input)
    return plain


def _calibration_images(dataset, shape, classes):
    remaining = CALIBRATION_IMAGES
    # A batch has one image or more, so this many batches are enough.
    for images, _ in labelled_batches(dataset, shape, classes, CALIBRATION_IMAGES):
        yield images[:remaining]
        remaining -= len(images)
        if remaining <= 0:
            return


def _training_step(student, teacher, steps, learning_rate, distillation, temperature):
    """Returns a function of images and labels that takes a step and returns the loss."""
    import tf_keras

    schedule = tf_keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    optimizer = tf_keras.optimizers.Adam(schedule)
    variables = student.trainable_variables
    optimizer.build(variables)
    cross_entropy = tf.nn.softmax_cross_entropy_with_logits

    @tf.function(autograph=False, reduce_retracing=True)
    def step(images, labels):
        targets = labels
        if labels.shape.rank == 1:
            targets = tf.one_hot(labels, teacher.output_shape[-1])
        soft = teacher(images, training=False) if distillation else None
        with tf.GradientTape() as tape:
            logits = student(images, training=True)
            losses = (1 - distillation) * cross_entropy(targets, logits)
            if distillation:
                soft = tf.nn.softmax(soft / temperature)
                # The square keeps the gradients at the size that they have at temperature 1.
                weight = distillation * temperature**2
                losses += weight * cross_entropy(soft, logits / temperature)
            loss = tf.reduce_mean(losses)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        return loss

    return step


def _fine_tune(step, batches, steps, verbose):
    from tqdm import tqdm

    with tqdm(total=steps, desc="fine-tuning for int8", disable=not verbose, unit="step") as bar:
        for number, (images, labels) in enumerate(batches, 1):
            loss = float(step(images, labels))
            if not math.isfinite(loss):
                raise ValueError(
                    f"The loss of step {number} of {steps} is {loss}: try a smaller "
                    "`learning_rate`."
                )
            bar.set_postfix(loss=f"{loss:.3f}")
            bar.update()
