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
log.csv, tensorboard/, supernet.keras (the teacher, with recalibrated batch norm), tables/, plots/.
Batches, augmentation and random widths are functions of --seed and the step, so a run that was
killed and resumed ends with the weights of one that was not, with --deterministic bit for bit; a
dropout rate above 0 is exempt, since its masks are drawn by a stateful generator.
"""

import pathlib

import common
from absl import flags
from model_settings import MODELS, variant_routes
from start import start

FLAGS = flags.FLAGS
common.define_data_flags()
flags.DEFINE_string("workdir", None, "Folder of the run: all that it writes.", required=True)
flags.DEFINE_enum("model", "ds_mobilenet", list(MODELS), "The network.")
flags.DEFINE_string(
    "weights",
    None,
    "To start from: imagenet, cifar10, or a .weights.h5 or .pth.tar file, of this network or of "
    "other classes. None: random ones.",
)
flags.DEFINE_float("alpha", None, "Scales all channels; none: 1, or as --weights.")
flags.DEFINE_float("front_alpha", None, "Scales the channels before the gate; none: --alpha.")
flags.DEFINE_enum(
    "output_stride", None, ["8", "16", "32"], "8 or 16 for small images; none: 32, or as --weights."
)
flags.DEFINE_list("strides", None, "1 or 2, stem and stages one by one: no output_stride.")
flags.DEFINE_enum("variant", None, ["S", "M", "L"], "The paper's routes; none: every width.")
flags.DEFINE_enum(
    "attention", None, ["tanh", "sigmoid"], "Of the attention heads; none: tanh, or as --weights."
)
flags.DEFINE_enum(
    "slimming_head",
    None,
    ["one_hot", "scalar"],
    "Design of the gate (Table 7); none: one_hot, or as --weights.",
)
flags.DEFINE_bool(
    "share_encoder",
    None,
    "Both heads of a gate share W1 (Table 7); none: they do, or as --weights.",
)
flags.DEFINE_float("dropout", 0.0, "Rate before the classifier.")
flags.DEFINE_integer("batch_size", 512, "Images per step, of all replicas.", lower_bound=1)
flags.DEFINE_integer("epochs", 150, "Epochs.", lower_bound=1)
flags.DEFINE_float("learning_rate", None, "At batch 512; scaled by the batch. None: the paper's.")
flags.DEFINE_float("warmup_epochs", 0.0, "Epochs of linear warm-up.", lower_bound=0.0)
flags.DEFINE_float("weight_decay", 1e-4, "L2 in the gradient; none on the gates.")
flags.DEFINE_bool("decay_norms_and_biases", False, "Weight decay on norms and biases too.")
flags.DEFINE_enum("target", "ensemble", ["in_place", "ema", "ensemble"], "Soft labels (Table 5).")
flags.DEFINE_integer("num_random", 2, "Random sub-networks per step.", lower_bound=0)
flags.DEFINE_float("temperature", 1.0, "Of the distillation (Table 10).")
flags.DEFINE_float("ema_momentum", 0.997, "Of the teacher.")
flags.DEFINE_enum("label_path", "widest", ["widest", "largest"], "What is trained on labels.")
flags.DEFINE_integer("alone", None, "Trains this one width alone, on labels, for comparison.")
flags.DEFINE_float("label_smoothing", 0.0, "Of the labels.")
flags.DEFINE_integer("recalibration_steps", 100, "Batches for the batch-norm statistics.")


def check_flags():
    """Raises an error for what the flags name and is not there."""
    common.check_flags()
    named = FLAGS.weights in (None, "imagenet", "cifar10")
    if not named and not pathlib.Path(FLAGS.weights).is_file():
        raise FileNotFoundError(f"--weights={FLAGS.weights}: there is no such file")


def make_model(classes):
    """Builds the network that the flags ask for."""
    from keras_dsnet import applications

    size = common.image_size()
    # What a flag leaves open, the weights say, or the application's defaults.
    options = {name: FLAGS[name].value for name in ("attention", "slimming_head", "share_encoder")}
    model = getattr(applications, MODELS[FLAGS.model].application)(
        weights=FLAGS.weights,
        input_shape=(size, size, 3),
        classes=classes,
        alpha=FLAGS.alpha,
        output_stride=FLAGS.output_stride and int(FLAGS.output_stride),
        front_alpha=FLAGS.front_alpha,
        strides=FLAGS.strides and [int(stride) for stride in FLAGS.strides],
        dropout=FLAGS.dropout,
        synchronized=FLAGS.strategy == "mirrored",
        **{name: value for name, value in options.items() if value is not None},
    )
    model.routes = variant_routes(model, FLAGS.variant) or model.routes
    return model


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
    schedule = cosine_schedule(
        scaled_learning_rate(rate, FLAGS.batch_size),
        total_steps,
        warmup_steps=round(FLAGS.warmup_epochs * steps_per_epoch),
    )
    trainer.compile(L2SGD(schedule, weight_decay=FLAGS.weight_decay))
    return trainer


def main(_):
    from keras_dsnet.training import TrainingRun, WorkDir, evaluate_paths, recalibrate_batch_norm

    config, exempt = common.config()
    workdir = WorkDir(FLAGS.workdir, config, exempt)
    train, evaluation = common.load_sources()
    steps_per_epoch = train.steps_per_epoch(FLAGS.batch_size)
    with common.prepare_machine():
        model = make_model(FLAGS.classes or train.num_classes)
        trainer = make_trainer(model, FLAGS.epochs * steps_per_epoch, steps_per_epoch)
    size = model.input_shape[1:3]
    # Of a width that is trained alone the others mean nothing.
    paths = None if FLAGS.alone is None else [FLAGS.alone]
    ends = paths or ["slimmest", "widest"]
    training = TrainingRun(
        trainer,
        workdir,
        lambda step: common.training_dataset(train, step, size),
        batch_size=FLAGS.batch_size,
        steps_per_epoch=steps_per_epoch,
        epochs=FLAGS.epochs,
        checkpoint_steps=FLAGS.checkpoint_steps,
        evaluate=lambda: evaluate_paths(
            model, common.evaluation_dataset(evaluation, size), ends, False
        ),
        evaluate_epochs=FLAGS.evaluate_epochs,
    )
    training.fit()
    trainer.load_teacher()
    steps = min(FLAGS.recalibration_steps, steps_per_epoch)
    recalibrate_batch_norm(model, common.training_dataset(train, 0, size), paths, steps=steps)
    common.save_model(model, workdir.path / "supernet.keras")
    rows = evaluate_paths(model, common.evaluation_dataset(evaluation, size), paths, dynamic=False)
    common.report(model, rows, workdir)


if __name__ == "__main__":
    start(main, check_flags)
