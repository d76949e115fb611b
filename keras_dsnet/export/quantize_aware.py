"""Quantisation-aware training of one sub-network."""

import math
import numbers

import keras
import tensorflow as tf

from keras_dsnet.export.conversion import convert, labelled_batches
from keras_dsnet.export.export_subnetwork import finish_file
from keras_dsnet.export.options import check_network, check_shape, check_target
from keras_dsnet.utils import batches
from keras_dsnet.utils.atomic_file import atomic_file

CALIBRATION_IMAGES = 512


def quantize_aware(
    model,
    path,
    dataset,
    *,
    epochs=1,
    steps_per_epoch=None,
    learning_rate=1e-4,
    distillation=1.0,
    temperature=4.0,
    input_shape=None,
    filename=None,
    verbose=True,
):
    """Fine-tunes one path for int8 and returns it as a TFLite file.

    The sub-network computes with kernels and activations rounded as the file's, and learns to live
    with it (tensorflow-model-optimization), by Adam with a cosine schedule. `model` stays what it
    is. The file has builtin operators, batch 1, and one signature, "serving_default": `image`
    float32 `[1, height, width, 3]`, preprocessed, to `output` float32 `[1, classes]`; in between
    all is int8, but what TFLite cannot quantise, such as group normalisation.

    Args:
        model: a `DynamicSlimmableNetwork` with a classifier, which ends in a softmax or in logits.
        path: as in a call of the network.
        dataset: a `tf.data.Dataset` or another iterable of batches: images, float32
            `[batch, height, width, 3]`, preprocessed and augmented as in training, and labels,
            class numbers or probabilities, as `fit` takes them. The ranges of the activations are
            measured on its first images, before.
        epochs: int.
        steps_per_epoch: int, batches per epoch; None: all of a data set that has a length. An epoch
            goes on where the one before it ended.
        learning_rate: float, of the first step.
        distillation: float: the share of the float sub-network's probabilities in what is learned;
            the rest are the labels. Labels help a network that was not trained to its end; the
            file of one that was comes closest to it without them.
        temperature: float: both networks' logits are divided by it where one learns from the other.
            A network that fits its training images is all but certain of them: at 1 it teaches
            little, and the steps are mostly noise.
        input_shape: `(height, width, 3)`, where the network leaves it open; None: the network's.
        filename: ending in `.tflite`, where to write the file too; an old one survives a failure.
        verbose: bool: show a progress bar.

    Returns:
        The bytes of the file.

    Raises:
        ValueError: on an argument or a batch that does not fit, a network that cannot be quantised,
            or a loss that is no number.
        OSError: where the file cannot be written.
    """
    check_network(model)
    shape = _check_network(model, input_shape)
    path = model.resolve_path(path)
    # What is no data set is named first.
    batches.labelled_batches(dataset, shape, model.classes, 1)
    steps = _check_training(
        dataset, epochs, steps_per_epoch, learning_rate, distillation, temperature
    )
    if filename is not None:
        check_target(filename)
    # The first batch is looked at before the work starts.
    next(labelled_batches(dataset, shape, model.classes, 1))
    distill = (distillation, temperature)
    content = _quantize(model, path, dataset, shape, steps, learning_rate, distill, verbose)
    if filename is not None:
        with atomic_file(filename, "wb") as file:
            file.write(content)
    return content


def _check_network(model, input_shape):
    """Returns the shape of the images."""
    if not model.include_top or model.classifier_activation not in ("softmax", "linear"):
        top = model.classifier_activation if model.include_top else None
        raise ValueError(
            "Quantisation-aware training needs a network that ends in a softmax or in logits. "
            f"Received: include_top={model.include_top}, classifier_activation={top!r}"
        )
    return check_shape(model, input_shape)


def _check_training(dataset, epochs, steps_per_epoch, learning_rate, distillation, temperature):
    """Returns the number of steps."""
    counts = {"epochs": epochs, "steps_per_epoch": steps_per_epoch}
    for name, value in counts.items():
        if name == "steps_per_epoch" and value is None:
            continue
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be an int of at least 1. Received: {name}={value!r}")
    for name, value in {"learning_rate": learning_rate, "temperature": temperature}.items():
        if not _is_number(value) or not 0 < value < math.inf:
            raise ValueError(f"`{name}` must be a positive number. Received: {name}={value!r}")
    if not _is_number(distillation) or not 0 <= distillation <= 1:
        raise ValueError(
            f"`distillation` must be from 0 to 1. Received: distillation={distillation!r}"
        )
    if steps_per_epoch is None:
        steps_per_epoch = batches.batch_count(dataset)
        if steps_per_epoch is None:
            raise ValueError(
                "`dataset` has no length, or no end: pass `steps_per_epoch`. "
                "Received: steps_per_epoch=None"
            )
    return epochs * steps_per_epoch


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _quantize(model, path, dataset, shape, steps, learning_rate, distill, verbose):
    """Returns the bytes of the file."""
    # Slow to import, and needed here alone.
    from keras_dsnet.export.qat_model import fake_quantized, legacy_model

    # Batch norm is folded before, not kept while the network is trained: so the kernels that are
    # rounded are those of the file. Kept, its statistics follow small batches of a rounded network:
    # on CIFAR-10 that alone, at a learning rate of zero, took the outputs further from the float
    # network's, and training ended further from them than with batch norm folded.
    plain = model.subnetwork(path, fold_batch_norm=True)
    softmax = model.classifier_activation == "softmax"
    if softmax:
        plain = keras.Model(plain.input, plain.layers[-1].input)
    teacher = legacy_model(plain, shape)
    quantized = fake_quantized(teacher, _calibration_images(dataset, shape, model.classes))
    training = labelled_batches(dataset, shape, model.classes, steps)
    step = _training_step(quantized, teacher, steps, learning_rate, *distill)
    _fine_tune(step, training, steps, verbose)

    def infer(image):
        logits = quantized(image, training=False)
        return {"output": tf.nn.softmax(logits) if softmax else logits}

    # No samples: the ranges are in the graph.
    return finish_file(convert(infer, {"image": tf.TensorSpec((1, *shape))}, "int8"), model)


def _calibration_images(dataset, shape, classes):
    left = CALIBRATION_IMAGES
    # One pass: a batch has an image or more.
    for images, _ in batches.labelled_batches(dataset, shape, classes, CALIBRATION_IMAGES):
        yield images[:left]
        left -= len(images)
        if left <= 0:
            return


def _training_step(quantized, teacher, steps, learning_rate, distillation, temperature):
    """Returns a function of images and labels that does a step and returns the loss."""
    import tf_keras

    schedule = tf_keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    optimizer = tf_keras.optimizers.Adam(schedule)
    variables = quantized.trainable_variables
    optimizer.build(variables)
    cross_entropy = tf.nn.softmax_cross_entropy_with_logits

    @tf.function(autograph=False, reduce_retracing=True)
    def step(images, labels):
        targets = labels
        if labels.shape.rank == 1:
            targets = tf.one_hot(labels, teacher.output_shape[-1])
        soft = teacher(images, training=False) if distillation else None
        with tf.GradientTape() as tape:
            logits = quantized(images, training=True)
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
