r"""Stage I: trains a supernet by In-place Ensemble Bootstrapping.

Real work, as in the paper (150 epochs, batch 512 over the replicas, lr 0.08 at batch 512; of
--model=ds_resnet50 and --model=ds_efficientnet_b0 0.2):

    python recipes/imagenet_stage1.py --data_dir=/data/tfds --workdir=runs/imagenet \
        --batch_size=512 --strategy=mirrored

CIFAR-10 (docs/results/cifar10.md):

    python recipes/imagenet_stage1.py --dataset=cifar10 --data_dir=... --workdir=runs/cifar10 \
        --alpha=0.25 --front_alpha=0.75 --strides=1,1,2,1,2,2 --num_random=1 --batch_size=64 \
        --epochs=27 --learning_rate=0.4 --weight_decay=5e-4 --warmup_epochs=1 --evaluate_epochs=9

Your own images, a folder of class folders, from trained weights:

    python recipes/imagenet_stage1.py --dataset=flowers/ --weights=imagenet --workdir=runs/flowers \
        --batch_size=64 --epochs=20 --learning_rate=0.04

The work directory gets checkpoint.npz (a run that was stopped goes on by the same command),
log.csv, tensorboard/, labels.txt (the classes, in the order of the outputs), supernet.keras (the
teacher, with recalibrated batch norm), tables/, plots/. What fails after the last epoch leaves the
trained network there, and the same command does the rest again.

A run trains longer by the same command with more --epochs, whether it has ended or not. The cosine
then spans the new total: the steps to come have the learning rates of a run of that many epochs,
those that were done had other ones. So the result is near to, but not the same as, that of a run
with as many epochs from its start.

Batches, augmentation and random widths are functions of --seed and the step, so a run that was
killed and resumed ends with the weights of one that was not, with --deterministic bit for bit; a
dropout rate above 0 is exempt, since its masks are drawn by a stateful generator.
"""

import pathlib

from absl import flags
from keras_dsnet_recipes.lib import checks, data, run
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.model_settings import (
    MODELS,
    PAPER_WIDTHS,
    check_variant,
    variant_routes,
)
from keras_dsnet_recipes.lib.start import start

FLAGS = flags.FLAGS
shared.define_training()
shared.define_workdir()
shared.define_network(MODELS)
shared.define_channels(
    None,
    "Scales all channels. None: 1, or as --weights.",
    None,
    "Total stride, 8 or 16 for small images. None: 32, or as --weights.",
)
shared.define_gate_design(("one_hot, or as --weights", "they do, or as --weights"))
shared.define_variant("The paper's routes. None: every width.")
shared.define_schedule(150, None, " None: the paper's.")
shared.define_temperature("Temperature of the distillation (Table 10).")
shared.define_path(
    "weights",
    None,
    "Weights to start from: imagenet, cifar10, or a .weights.h5 or .pth.tar file, of this network "
    "or of other classes. None: random ones.",
)
flags.DEFINE_enum(
    "widths",
    None,
    ["paper"],
    "paper: the 18 widths that the paper describes, of ds_mobilenet. None: the released 14, or as "
    "--weights.",
)
shared.define_number(
    "front_alpha", None, "Scales the channels before the gate. None: --alpha.", above=0
)
shared.define_strides(
    "strides", "Strides of the stem and of each stage, 1 or 2; excludes --output_stride."
)
flags.DEFINE_enum(
    "attention",
    None,
    ["tanh", "sigmoid"],
    "Activation of the attention heads. None: tanh, or as --weights.",
)
shared.define_number("dropout", 0.0, "Dropout rate before the classifier.", low=0, below=1)
shared.define_number("warmup_epochs", 0.0, "Epochs of linear warm-up.", low=0)
shared.define_number(
    "weight_decay", 1e-4, "L2 penalty in the gradient; the gates have none.", low=0
)
flags.DEFINE_bool("decay_norms_and_biases", False, "Weight decay on norms and biases too.")
flags.DEFINE_enum("target", "ensemble", ["in_place", "ema", "ensemble"], "Soft labels (Table 5).")
flags.DEFINE_integer("num_random", 2, "Random sub-networks per step.", lower_bound=0)
shared.define_number(
    "ema_momentum", 0.997, "Momentum of the teacher's moving average.", low=0, below=1
)
flags.DEFINE_enum(
    "label_path", "widest", ["widest", "largest"], "The sub-network that is trained on labels."
)
flags.DEFINE_integer(
    "alone", None, "Trains only this width, on labels, for comparison.", lower_bound=0
)
shared.define_number("label_smoothing", 0.0, "Label smoothing.", low=0, below=1)
flags.DEFINE_integer(
    "recalibration_steps", 100, "Batches for the batch-norm statistics.", lower_bound=1
)


def check_flags():
    """Raises an error for what the flags name and is not there, or what cannot be together."""
    checks.check_run()
    settings = MODELS[FLAGS.model]
    named = FLAGS.weights in (None, "imagenet", "cifar10")
    if not named and pathlib.Path(FLAGS.weights).is_dir():
        raise IsADirectoryError(
            f"--weights={FLAGS.weights} is a folder: name a .weights.h5 or .pth.tar file"
        )
    if not named and not pathlib.Path(FLAGS.weights).is_file():
        raise FileNotFoundError(f"--weights={FLAGS.weights}: there is no such file")
    if FLAGS.widths is not None and FLAGS.model != "ds_mobilenet":
        raise ValueError(
            f"--widths is for --model=ds_mobilenet. Received: --model={FLAGS.model}, "
            f"--widths={FLAGS.widths}"
        )
    widths = PAPER_WIDTHS if FLAGS.widths else settings.widths
    if FLAGS.alone is not None and FLAGS.alone >= widths:
        raise ValueError(
            f"--alone must be a width from 0 to {widths - 1} of --model={FLAGS.model}. "
            f"Received: --alone={FLAGS.alone}"
        )
    if FLAGS.variant is not None:
        check_variant(settings.variants, FLAGS.variant)
    if FLAGS.strides is not None and len(FLAGS.strides) != settings.strides:
        raise ValueError(
            f"--strides must be {settings.strides} numbers for --model={FLAGS.model}: of the stem "
            f"and of each stage. Received: --strides={','.join(map(str, FLAGS.strides))}"
        )
    if FLAGS.strides is not None and FLAGS.output_stride is not None:
        raise ValueError(
            "--strides and --output_stride say the same thing: give one of them. Received: "
            f"--strides={','.join(map(str, FLAGS.strides))}, --output_stride={FLAGS.output_stride}"
        )
    if FLAGS.warmup_epochs >= FLAGS.epochs:
        raise ValueError(
            f"--warmup_epochs must be below --epochs={FLAGS.epochs}. "
            f"Received: --warmup_epochs={FLAGS.warmup_epochs:g}"
        )


def make_model(classes):
    """Builds the network that the flags ask for."""
    from keras_dsnet import applications

    size = data.image_size()
    # What a flag leaves open, the weights say, or the application's defaults.
    names = ("widths", "attention", "slimming_head", "share_encoder")
    options = {name: FLAGS[name].value for name in names}
    return getattr(applications, MODELS[FLAGS.model].application)(
        weights=FLAGS.weights,
        input_shape=(size, size, 3),
        classes=classes,
        alpha=FLAGS.alpha,
        output_stride=FLAGS.output_stride and int(FLAGS.output_stride),
        front_alpha=FLAGS.front_alpha,
        strides=FLAGS.strides,
        dropout=FLAGS.dropout,
        synchronized=FLAGS.strategy == "mirrored",
        **{name: value for name, value in options.items() if value is not None},
    )


def reset_gates(model):
    """Makes the gates untrained, and all widths or those of --variant routes.

    Gates that came with --weights were trained on what this stage changes.
    """
    if model.gates_trained:
        print(
            f"note: the gates of --weights={FLAGS.weights} do not fit what this run trains: stage "
            "II trains them anew",
            flush=True,
        )
        model.reset_gates()
    model.routes = variant_routes(model, FLAGS.variant) or model.routes


def make_trainer(model, total_steps, steps_per_epoch):
    """Builds the trainer with the paper's optimizer and schedule."""
    from keras_dsnet.training import L2SGD, SupernetTrainer, cosine_schedule, scaled_learning_rate

    trainer = SupernetTrainer(
        model,
        target=FLAGS.target,
        num_random=FLAGS.num_random,
        temperature=FLAGS.temperature,
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
        warmup_steps=round(FLAGS.warmup_epochs * steps_per_epoch),
    )
    trainer.compile(L2SGD(schedule, weight_decay=FLAGS.weight_decay))
    return trainer


def recalibrate(model, train, steps, paths):
    """Gives the network batch-norm statistics of the training images, and says where it cannot."""
    from keras_dsnet.training import recalibrate_batch_norm

    batches = data.training_dataset(model, train, 0, model.input_shape[1:3])
    try:
        recalibrate_batch_norm(model, batches, paths, steps=steps)
    except BaseException:
        print(
            f"{FLAGS.workdir}/supernet.keras has no recalibrated batch norm yet: the same command "
            "does it, without training again",
            flush=True,
        )
        raise


def print_end(workdir, model):
    """Prints what was written and the command that follows."""
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
    from keras_dsnet.runs import TrainingRun
    from keras_dsnet.training import evaluate_paths

    run.open_workdir(check_only=True)
    if pathlib.Path(FLAGS.dataset).is_dir():
        # A large folder takes minutes to look through: what is wrong with the network shows before.
        # Of the classes of the weights, so that the log does not tell of others yet.
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
    size = model.input_shape[1:3]
    # Of a width that is trained alone the others mean nothing.
    paths = None if FLAGS.alone is None else [FLAGS.alone]
    ends = paths or ["slimmest", "widest"]
    training = TrainingRun(
        trainer,
        workdir,
        lambda step: data.training_dataset(model, train, step, size),
        batch_size=FLAGS.batch_size,
        steps_per_epoch=steps_per_epoch,
        epochs=FLAGS.epochs,
        checkpoint_steps=FLAGS.checkpoint_steps,
        evaluate=lambda: evaluate_paths(
            model, data.evaluation_dataset(model, evaluation, size), ends, False
        ),
        evaluate_epochs=FLAGS.evaluate_epochs,
        class_names=train.class_names,
        num_images=train.num_examples,
    )

    def save():
        trainer.load_teacher()
        run.write_labels(model, workdir.path)
        run.save_model(model, workdir.path / "supernet.keras")

    run.fit(training, save)
    recalibrate(model, train, min(FLAGS.recalibration_steps, steps_per_epoch), paths)
    run.save_model(model, workdir.path / "supernet.keras")
    batches = data.evaluation_dataset(model, evaluation, size)
    rows = evaluate_paths(model, batches, paths, dynamic=False, verbose=True)
    run.report(model, rows, workdir.tables, workdir.plots, workdir.log)
    print_end(workdir, model)


if __name__ == "__main__":
    start(main, check_flags)
