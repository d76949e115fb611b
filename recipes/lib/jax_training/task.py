"""A run of stage I as a task for JAX, whose result the run takes over."""

import json
import pathlib

import numpy as np
from absl import flags
from keras_dsnet_recipes.lib import data
from keras_dsnet_recipes.lib.jax_training import files

FLAGS = flags.FLAGS
# Flags that JAX has no equivalent of, with the values that it supports.
_SUPPORTED = {
    "strategy": ("default",),
    "mixed_precision": ("none",),
    "dropout": (0.0,),
    "augmentation": (None, "none", "cifar"),
    "randaugment": (0,),
    "auto_augment": (None,),
    "color_jitter": (0.0,),
    "random_erasing": (0.0,),
    "label_path": ("widest",),
}
_PADDINGS = {"none": 0, "cifar": 4}


def check_flags():
    """Raises a ValueError for a flag that the training in JAX does not support."""
    for name, values in _SUPPORTED.items():
        if FLAGS[name].value not in values:
            known = " or ".join(str(value) for value in values if value is not None)
            raise ValueError(
                f"--jax_task supports --{name}={known} only. Received: --{name}={FLAGS[name].value}"
            )
    if chosen_augmentation() not in _PADDINGS:
        raise ValueError(
            f"--jax_task needs --augmentation=none or cifar, since --dataset={FLAGS.dataset} has "
            f"{chosen_augmentation()} by default"
        )


def chosen_augmentation():
    """Returns the augmentation of the run."""
    return FLAGS.augmentation or data.default_augmentation(FLAGS.dataset)


def is_trained(folder):
    """Returns whether the folder of a task has its result."""
    return (pathlib.Path(folder) / files.RESULT).is_file()


def write_task(folder, training, source, augmentation, hflip=None):
    """Writes the state of a run as a task, and its images beside the folder of the task.

    Args:
        folder: Path of the folder of the task, which is made.
        training: `TrainingRun` of a `SupernetTrainer`.
        source: `ImageSource` of the training images.
        augmentation: Str, "none" or "cifar".
        hflip: Bool or None, the value of --hflip.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    trainer, variables = training.trainer, training.variables()
    state = training.checkpoint.restore(variables)
    images, labels = _pixels(source, trainer.model.input_shape[1:3])
    settings = _settings(training, source, augmentation, hflip, state["step"] if state else 0)
    settings["images"] = files.write_images(folder.parent, images, labels)
    arrays = _constants(training)
    for index, variable in enumerate(trainer.model.variables):
        arrays[f"variable/{index}"] = variable.numpy()
    for number, momentum in enumerate(trainer.optimizer.momentums):
        arrays[f"momentum/{number}"] = momentum.numpy()
    averages = zip(trainer._average.variables, trainer.teacher_variables)
    of_variable = {id(variable): average.numpy() for variable, average in averages}
    for index, variable in enumerate(trainer.model.variables):
        if of_variable:
            arrays[f"teacher/{index}"] = of_variable.get(id(variable), variable.numpy())
    files.write(folder / files.TASK, arrays, settings)


def _constants(training):
    """Returns the learning rate of each step, and the scale and offset of the pixels."""
    import keras
    import tensorflow as tf

    trainer = training.trainer
    schedule = keras.optimizers.schedules.deserialize(
        trainer.optimizer.get_config()["learning_rate"]
    )
    rate_of = tf.function(lambda steps: tf.map_fn(schedule, steps), autograph=False)
    steps = tf.range(training.epochs * training.steps_per_epoch, dtype=tf.float32)
    zero, one = (trainer.model.normalization(np.full((1, 1, 1, 3), v, "float32")) for v in (0, 1))
    return {
        "learning_rates": rate_of(steps).numpy(),
        "offset": np.array(zero).reshape(3),
        "scale": np.array(one - zero).reshape(3),
    }


def _pixels(source, size):
    """Returns all images of a source as uint8, and their labels, in the order of the source."""
    import tensorflow as tf

    from keras_dsnet.data.pipelines import whole_image

    def pixels(stored, label):
        return tf.cast(tf.round(whole_image(source, stored, size)), tf.uint8), label

    images = np.empty((source.num_examples, *size, 3), np.uint8)
    labels = np.empty(source.num_examples, np.int32)
    start = 0
    for batch, classes in source.map_evaluation(pixels, 256):
        images[start : start + len(batch)], labels[start : start + len(batch)] = batch, classes
        start += len(batch)
    return images[:start], labels[:start]


def _settings(training, source, augmentation, hflip, step):
    trainer, model = training.trainer, training.trainer.model
    indices = {id(variable): index for index, variable in enumerate(model.variables)}
    undecayed = {id(variable) for variable in trainer._undecayed_variables()}
    optimizer = trainer.optimizer
    names = ("target", "num_random", "temperature", "scale_distillation", "ema_momentum")
    names += ("ema_warmup", "sandwich", "label_smoothing", "seed")
    mirrors = augmentation != "none" and source.mirrorable
    return {name: getattr(trainer, name) for name in names} | {
        # Tasks of another learning rate or normalisation are other tasks.
        "constants": files.checksum(_constants(training).values()),
        "steps": describe_steps([s for section in model.sections for s in section], indices),
        "num_variables": len(indices),
        "trained": [indices[id(v)] for v in trainer.optimized_variables],
        "decayed": [indices[id(v)] for v in trainer.optimized_variables if id(v) not in undecayed],
        "weight_decay": optimizer.weight_decay or 0.0,
        "momentum": optimizer.momentum,
        "nesterov": optimizer.nesterov,
        "label_path": list(model.resolve_path(trainer.label_path).gates),
        "label_name": trainer._label_name,
        "num_widths": model.num_widths,
        "num_gates": model.num_gates,
        "step": step,
        "steps_per_epoch": training.steps_per_epoch,
        "epochs": training.epochs,
        "batch_size": training.batch_size,
        "padding": _PADDINGS[augmentation],
        "hflip": mirrors if hflip is None else hflip,
    }


def describe_steps(steps, indices):
    """Returns steps as dicts for JSON.

    Args:
        steps: Iterable of `keras_dsnet.models.topology.Step`.
        indices: Dict from the ids of variables to their places.

    Raises:
        ValueError: If JAX has no equivalent of a step.
    """

    def place(variable):
        return None if variable is None else indices[id(variable)]

    described = []
    for step in steps:
        layer, kind = step.layer, step.kind
        entry = {"kind": kind, "section": step.section, "activation": step.activation}
        if kind in ("conv", "depthwise"):
            options = layer.filters if kind == "conv" else layer.channels
            entry |= {"kernel": place(layer.kernel), "bias": place(layer.bias), "options": options}
            entry |= {n: getattr(layer, n) for n in ("kernel_size", "strides", "padding")}
        elif kind == "norm":
            entry |= {"gamma": place(layer.gamma), "beta": place(layer.beta)}
            entry |= {"options": layer.channels, "epsilon": layer.epsilon}
            if step.is_batch_norm:
                names = ("moving_mean", "moving_variance")
                entry |= {name: place(getattr(layer, name)) for name in names}
                entry["momentum"] = layer.momentum
            else:
                entry["channels_per_group"] = layer.channels_per_group
        elif kind == "gate":
            entry["attention"] = layer.attention
            entry |= {n: place(getattr(layer, n)) for n in ("w1", "b1", "w3", "b3")}
        elif kind == "max_pool":
            entry |= {"size": layer.pool_size, "strides": layer.strides}
        elif kind == "dense":
            entry |= {"kernel": place(layer.kernel), "bias": place(layer.bias)}
        elif kind == "residual":
            entry["branch"] = describe_steps(step.branch, indices)
            entry["shortcut"] = describe_steps(step.shortcut, indices)
        elif kind not in ("pool", "global_max_pool"):
            raise ValueError(f"--jax_task does not support the step {kind!r} of this network")
        described.append(entry)
    return described


def take_result(folder, training, source, augmentation, hflip=None):
    """Assigns the result of a task to a run, and saves it as the checkpoint of its last step.

    Args:
        folder: Path of the folder of the task.
        training: `TrainingRun` with which the task was written.
        source: `ImageSource` of the training images.
        augmentation: Str, "none" or "cifar".
        hflip: Bool or None, the value of --hflip.

    Raises:
        ValueError: If the result is of another network, of other images, or of another number of
            steps.
    """
    from keras_dsnet.runs.csv_log import CsvLog

    result = files.read(pathlib.Path(folder) / files.RESULT)
    settings, trainer = result["settings"], training.trainer
    variables = training.variables()
    steps = training.epochs * training.steps_per_epoch
    expected = json.loads(json.dumps(_settings(training, source, augmentation, hflip, steps)))
    expected["images"] = files.name_of_images(*_pixels(source, trainer.model.input_shape[1:3]))
    differing = [name for name, value in expected.items() if value != settings[name]]
    if differing:
        name = differing[0]
        raise ValueError(
            f"--jax_task={folder} was trained with another value of {name!r} than this run has: "
            "write the task again, into another folder"
        )
    groups = {
        "variable": trainer.model.variables,
        "momentum": trainer.optimizer.momentums,
    }
    for name, group in groups.items():
        for index, variable in enumerate(group):
            variable.assign(result[f"{name}/{index}"])
    places = {id(variable): index for index, variable in enumerate(trainer.model.variables)}
    for variable, average in zip(trainer._average.variables, trainer.teacher_variables):
        average.assign(result[f"teacher/{places[id(variable)]}"])
    trainer.optimizer.iterations.assign(steps)
    log = CsvLog(training.workdir.log)
    for row in settings["log"]:
        epoch = row["epoch"] - 1
        log.on_epoch_begin(epoch)
        log.on_epoch_end(epoch, {name: v for name, v in row.items() if name != "epoch"})
    training.checkpoint.save(variables, steps, {"epochs": training.epochs, "data": training.data})
    print(
        f"trained by JAX {settings['jax']} on {settings['device']} in {settings['seconds']:.0f} s, "
        f"{settings['together']} side by side: {steps} steps",
        flush=True,
    )
