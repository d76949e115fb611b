r"""Stage I: trains a supernet by In-place Ensemble Bootstrapping.

The flag files in recipes/configs/ hold the settings of the published runs. That of CIFAR-10 trains
the weights that come with the package (docs/results/cifar10.md):

    python recipes/imagenet_stage1.py --flagfile=recipes/configs/cifar10_stage1.cfg \
        --data_dir=/data/tfds --workdir=runs/cifar10

ImageNet with the settings of the paper: 150 epochs at batch 512. This run has not been made with
this package.

    python recipes/imagenet_stage1.py --data_dir=/data/tfds --workdir=runs/imagenet \
        --flagfile=recipes/configs/imagenet_ds_mobilenet_stage1.cfg --strategy=mirrored

Your own images, a folder with one folder per class, from trained weights:

    python recipes/imagenet_stage1.py --dataset=flowers/ --weights=imagenet --workdir=runs/flowers \
        --batch_size=64 --epochs=20 --learning_rate=0.04

Without a flag file the program trains DS-MobileNet on imagenet2012 for 150 epochs at batch 512. The
batch is divided among the replicas. The learning rate at batch 512 is 0.08, or 0.2 for
--model=ds_resnet50 and --model=ds_efficientnet_b0.

The program writes into the work directory:
- checkpoint.npz, from which the same command continues a run that was stopped;
- log.csv and tensorboard/;
- labels.txt, the names of the classes in the order of the outputs;
- supernet.keras, the teacher with recalibrated batch norm;
- tables/ and plots/.

On a machine with a GPU, JAX trains the same run without TensorFlow (recipes/jax_stage1.py). Then
--jax_task=FOLDER writes the run as a task, and the same command takes its result over.

If a step after the last epoch fails, the trained network is already saved, and the same command
repeats only the steps after the training.

The same command with more --epochs trains a run longer, whether the run has ended or not. The
cosine schedule then spans the new total: the remaining steps have the learning rates of a run with
that many epochs, but the steps before had other rates. The result is therefore close to, but not
the same as, the result of a run that had as many epochs from its start.

Batches, augmentation and random widths are functions of --seed and the step. A run that was killed
and resumed therefore ends with the weights of an uninterrupted run, bit for bit with
--deterministic. A dropout rate above 0 is an exception, because a stateful generator draws the
dropout masks.
"""

import pathlib

from absl import flags
from keras_dsnet_recipes.lib import checks, data, report, run, training_flags
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.jax_training import task
from keras_dsnet_recipes.lib.model_settings import (
    MODELS,
    PAPER_WIDTHS,
    PRESETS,
    check_variant,
    variant_routes,
)
from keras_dsnet_recipes.lib.plain_topology import PLAIN, plain_fields
from keras_dsnet_recipes.lib.start import start

FLAGS = flags.FLAGS
# The networks that a stage saves in its work directory.
_SAVED = ("supernet.keras", "model.keras")
training_flags.define_training()
shared.define_workdir()
shared.define_network(MODELS)
shared.define_channels(
    None,
    "Multiplier of all channel counts. Defaults to that of --weights, else 1.",
    None,
    "Total stride; 8 or 16 for small images. Defaults to that of --weights, else 32.",
)
_WEIGHTS = "that of --weights, else"
training_flags.define_gate_design(f"{_WEIGHTS} one_hot", f"{_WEIGHTS} true", f"{_WEIGHTS} global")
training_flags.define_variant(
    "Variant of the paper whose routes are used. Defaults to every width."
)
training_flags.define_schedule(150, None, " Defaults to the rate of the paper.")
training_flags.define_temperature("Temperature of the distillation (Table 10 of the paper).")
flags.DEFINE_bool(
    "scale_distillation",
    True,
    "Multiply the losses of the distillation by the square of --temperature.",
)
shared.define_path(
    "weights",
    None,
    "Weights to start from: imagenet, cifar10, tiny_imagenet, the work directory of a finished "
    "stage, or a .keras, .weights.h5 or .pth.tar file of this network, with the same classes or "
    "others. Defaults to random weights.",
)
flags.DEFINE_enum(
    "widths",
    None,
    ["paper"],
    "paper: the 18 widths of ds_mobilenet that the paper describes. Defaults to the widths of "
    "--weights, else the 14 that the authors released.",
)
training_flags.define_front_and_strides()
flags.DEFINE_enum(
    "topology",
    None,
    ["plain"],
    "plain: the one width of the plain MobileNetV1 or EfficientNet-B0, which is trained alone, for "
    "a comparison. Defaults to the widths of --model.",
)
flags.DEFINE_enum(
    "attention",
    None,
    ["tanh", "sigmoid", "none"],
    "Activation of the attention heads, or none for gates without attention. Defaults to that of "
    "--weights, else tanh.",
)
flags.DEFINE_enum(
    "activation",
    None,
    ["swish", "relu"],
    "Activation after the norms. Defaults to that of --weights, else to that of --model.",
)
shared.define_number("dropout", 0.0, "Dropout rate before the classifier.", low=0, below=1)
training_flags.define_warmup_and_decay()
training_flags.define_target(
    ["in_place", "ema", "ensemble"], "Source of the soft labels (Table 5 of the paper)."
)
training_flags.define_sandwich("Width to train alone, on the labels, for a comparison.")
shared.define_number(
    "ema_momentum", 0.997, "Momentum of the teacher's moving average.", low=0, below=1
)
flags.DEFINE_enum(
    "label_path", "widest", ["widest", "largest"], "Sub-network that is trained on the labels."
)
shared.define_number(
    "label_smoothing",
    0.0,
    "Label smoothing, as the share that is spread over all classes.",
    low=0,
    below=1,
)
training_flags.define_recalibration()
shared.define_path(
    "jax_task",
    None,
    "Folder of the run as a task for recipes/jax_stage1.py. Without a result in it, the task is "
    "written; with a result, the run goes on from there.",
)


def check_flags():
    """Raises an error for a missing file or folder, and for flags that contradict each other."""
    checks.check_run()
    settings = MODELS[FLAGS.model]
    check_weights(settings)
    if FLAGS.widths is not None and FLAGS.model != "ds_mobilenet":
        raise ValueError(
            f"--widths is for --model=ds_mobilenet. Received: --model={FLAGS.model}, "
            f"--widths={FLAGS.widths}"
        )
    check_topology()
    widths = PAPER_WIDTHS if FLAGS.widths else saved_widths() or settings.widths
    widths = 1 if FLAGS.topology else widths
    if FLAGS.alone is not None and FLAGS.alone >= widths:
        raise ValueError(
            f"--alone must be a width from 0 to {widths - 1} of --model={FLAGS.model}. "
            f"Received: --alone={FLAGS.alone}"
        )
    if FLAGS.variant is not None:
        check_variant(settings.variants, FLAGS.variant)
    checks.check_strides(FLAGS.model, settings.strides)
    checks.check_warmup()
    if FLAGS.jax_task is not None:
        task.check_flags()


def saved_widths():
    """Returns the number of widths of the network of --weights, or 0 if it is not known."""
    weights = find_weights()
    if weights in (None, *PRESETS) or pathlib.Path(weights).suffix != ".keras":
        return 0
    return checks.check_model(weights, "weights").num_widths


def check_topology():
    """Raises an error for flags that contradict --topology, and trains its one width alone."""
    if FLAGS.topology is None:
        return
    if FLAGS.model not in PLAIN:
        raise ValueError(
            f"--topology is for --model={' and '.join(PLAIN)}. Received: --model={FLAGS.model}, "
            f"--topology={FLAGS.topology}"
        )
    for name in ("widths", "variant"):
        if FLAGS[name].value is not None:
            raise ValueError(
                f"--topology={FLAGS.topology} has one width: leave --{name} out. "
                f"Received: --{name}={FLAGS[name].value}"
            )
    if FLAGS.weights in PRESETS:
        raise ValueError(
            f"--weights={FLAGS.weights} has several widths, --topology={FLAGS.topology} one: name "
            "the work directory of a run with this --topology"
        )
    if FLAGS.alone is None:
        FLAGS.alone = 0


def check_weights(settings):
    """Raises an error unless --weights names weights that fit --model, as far as flags show it."""
    weights = find_weights()
    if weights in (None, *PRESETS):
        return
    if not pathlib.Path(weights).is_file():
        raise FileNotFoundError(f"--weights={FLAGS.weights}: there is no such file")
    if pathlib.Path(weights).suffix != ".keras":
        return
    family = checks.check_model(weights, "weights").family
    if family is not None and family != settings.spec:
        raise ValueError(
            f"--weights={FLAGS.weights} are those of another network than --model={FLAGS.model}: "
            f"they are by {family}"
        )


def find_weights():
    """Returns the weights of --weights, with the file of a work directory for its folder."""
    if FLAGS.weights in (None, *PRESETS) or not pathlib.Path(FLAGS.weights).is_dir():
        return FLAGS.weights
    if not any((pathlib.Path(FLAGS.weights) / name).is_file() for name in _SAVED):
        raise IsADirectoryError(
            f"--weights={FLAGS.weights} is a folder without {' or '.join(_SAVED)}: name the work "
            "directory of a finished stage, or a .keras, .weights.h5 or .pth.tar file"
        )
    return str(checks.find_model(FLAGS.weights, "weights", _SAVED))


def make_model(classes):
    """Returns the network that the flags describe."""
    from keras_dsnet import applications

    size = data.image_size(default=None if FLAGS.weights else data.PHOTOGRAPH)
    # A flag without a value leaves the choice to the weights or to the application's default.
    names = ("widths", "attention", "activation")
    names += ("slimming_head", "share_encoder", "gate_encoder")
    options = {name: FLAGS[name].value for name in names if FLAGS[name].value is not None}
    if FLAGS.attention == "none":
        options["attention"] = None
    if FLAGS.topology:
        options |= plain_fields(FLAGS.model)
    model = getattr(applications, MODELS[FLAGS.model].application)(
        weights=find_weights(),
        input_shape=size and (size, size, 3),
        classes=classes,
        alpha=FLAGS.alpha,
        output_stride=FLAGS.output_stride and int(FLAGS.output_stride),
        front_alpha=FLAGS.front_alpha,
        strides=FLAGS.strides,
        dropout=FLAGS.dropout,
        synchronized=run.is_synchronized(),
        **options,
    )
    if None in model.input_shape[1:]:
        raise ValueError(
            f"--weights={FLAGS.weights} takes images of any size: choose one by --image_size"
        )
    return model


def reset_gates(model):
    """Forgets how --weights were routed. The routes are then those of --variant, or all widths.

    This stage changes the weights that gates and thresholds belong to.
    """
    if model.gates_trained:
        print(
            f"note: the gates of --weights={FLAGS.weights} will not fit the weights of this run: "
            "stage II trains them again",
            flush=True,
        )
    elif model.routing != "gate":
        print(
            f"note: the thresholds of --weights={FLAGS.weights} will not fit the weights of this "
            "run: calibrate.py chooses them again",
            flush=True,
        )
    model.reset_gates()
    model.routes = variant_routes(model, FLAGS.variant) or model.routes


def make_trainer(model, total_steps, steps_per_epoch):
    """Returns the trainer, compiled with the paper's optimizer and schedule."""
    from keras_dsnet.training import L2SGD, SupernetTrainer, cosine_schedule, scaled_learning_rate

    trainer = SupernetTrainer(
        model,
        target=FLAGS.target,
        num_random=FLAGS.num_random,
        temperature=FLAGS.temperature,
        scale_distillation=FLAGS.scale_distillation,
        ema_momentum=FLAGS.ema_momentum,
        label_path=FLAGS.label_path if FLAGS.alone is None else FLAGS.alone,
        sandwich=FLAGS.alone is None,
        label_smoothing=FLAGS.label_smoothing,
        decay_norms_and_biases=FLAGS.decay_norms_and_biases,
        seed=FLAGS.seed,
    )
    rate = FLAGS.learning_rate
    rate = MODELS[FLAGS.model].learning_rate if rate is None else rate
    scaled = scaled_learning_rate(rate, FLAGS.batch_size)
    run.print_learning_rate(rate, scaled)
    schedule = cosine_schedule(
        scaled,
        total_steps,
        # Rounding must not make the whole run a warm-up.
        warmup_steps=min(round(FLAGS.warmup_epochs * steps_per_epoch), total_steps - 1),
    )
    trainer.compile(L2SGD(schedule, weight_decay=FLAGS.weight_decay))
    return trainer


def recalibrate(model, train, steps, paths):
    """Recalibrates batch norm on training images; prints a hint if that fails."""
    from keras_dsnet.training import recalibrate_batch_norm

    batches = data.training_dataset(model, train, 0, model.input_shape[1:3])
    try:
        recalibrate_batch_norm(model, batches, paths, steps=steps)
    except BaseException:
        print(
            f"the recalibration of {FLAGS.workdir}/supernet.keras did not end: the same command "
            "does it again without training",
            flush=True,
        )
        raise


def train_by_jax(training, source):
    """Takes the result of --jax_task over, or writes the task. Returns whether it is trained."""
    if training.is_complete():
        return True
    images = task.chosen_augmentation(), FLAGS.hflip
    if task.is_trained(FLAGS.jax_task):
        task.take_result(FLAGS.jax_task, training, source, *images)
        return True
    task.write_task(FLAGS.jax_task, training, source, *images)
    print(
        f"\nwritten: {FLAGS.jax_task}\nnext, to train it where JAX has an accelerator, and then "
        f"this command again:\n    python recipes/jax_stage1.py --tasks={FLAGS.jax_task}",
        flush=True,
    )
    return False


def print_end(workdir, model):
    """Prints the files that were written and the next command."""
    gates = f"{FLAGS.workdir.rstrip('/')}_gates"
    arguments = [*run.data_flags(), run.flag("batch_size", FLAGS.batch_size)]
    following = run.command(
        "stage2", *arguments, f"--supernet={FLAGS.workdir}", f"--workdir={gates}"
    )
    purpose = f"train the gates{run.routes_hint(model)}"
    if FLAGS.alone is not None:
        purpose = "write the width as a TFLite file"
        following = run.command(
            "export",
            f"--model={FLAGS.workdir}",
            f"--path={FLAGS.alone}",
            f"--output={workdir.path / 'model.tflite'}",
        )
    files = ["supernet.keras", "labels.txt", "log.csv", "tables", "plots"]
    run.print_end([workdir.path / name for name in files], purpose, following)


def main(_):
    from keras_dsnet.training import evaluate_paths

    run.open_workdir(check_only=True)
    if run.checks_network_first():
        # A large folder takes minutes to read, so a mistake in the network's flags is found before.
        # The network has the classes of the weights here, so that nothing is logged about others.
        make_model(None)
    scope = run.prepare_machine()
    train, evaluation = data.load_sources()
    workdir = run.open_workdir()
    steps_per_epoch = train.steps_per_epoch(FLAGS.batch_size)
    with scope:
        model = make_model(FLAGS.classes or train.num_classes)
        reset_gates(model)
        trainer = make_trainer(model, FLAGS.epochs * steps_per_epoch, steps_per_epoch)
    if train.num_classes == model.classes:
        model.class_names = train.class_names
    model.crop_fraction = data.crop_of_flags()
    size = model.input_shape[1:3]
    # If one width is trained alone, the results of the others mean nothing.
    paths = None if FLAGS.alone is None else [FLAGS.alone]
    ends = paths or ["slimmest", "widest"]
    training = run.make_training(
        trainer,
        workdir,
        lambda step, **shard: data.training_dataset(model, train, step, size, **shard),
        train,
        lambda: evaluate_paths(
            model,
            data.evaluation_dataset(model, evaluation, size),
            ends,
            False,
        ),
    )

    file = workdir.path / "supernet.keras"
    was_complete = training.is_complete()

    def save():
        trainer.load_teacher()
        run.write_labels(model, workdir.path)
        # The file of a finished run is recalibrated, and this network is not yet.
        if not (was_complete and file.is_file()):
            run.save_model(model, file)

    if FLAGS.jax_task is not None and not train_by_jax(training, train):
        return
    if not run.fit(training, save):
        return
    recalibrate(model, train, min(FLAGS.recalibration_steps, steps_per_epoch), paths)
    run.save_model(model, file)
    batches = data.evaluation_dataset(model, evaluation, size)
    # Routing by confidence needs no gate. It means nothing if one width is trained alone.
    steps = model.confidence_steps if paths is None else None
    rows = evaluate_paths(model, batches, paths, dynamic=False, verbose=True, steps=steps)
    report.write_report(
        model, rows, evaluation, size, workdir.path, data.crop_of_flags(), workdir.log
    )
    print_end(workdir, model)


if __name__ == "__main__":
    start(main, check_flags)
