r"""Trains a network with early exits on the layers of DS-MobileNet, a peer of Table 2 of the paper.

    python recipes/early_exit.py --flagfile=recipes/configs/cifar10_table5.cfg \
        --undefok=num_random --data_dir=/data/tfds --workdir=runs/early_exit

The network is the widest path of DS-MobileNet with a further classifier after each block of
--exits. All classifiers are trained together on the labels, with the schedule, the augmentation and
the images of stage I. At inference an image leaves at the first exit whose confidence is above a
threshold. The program chooses no threshold: `recipes/reproduce.py --table=2` does so on the images
of every choice, and compares the network with the others.

The program writes into the work directory checkpoint.npz, from which the same command continues a
run that was stopped, log.csv, tensorboard/, model.keras, which consists of stock Keras layers, and
tables/paths.csv, the accuracy of each exit if all images leave there.
"""

from absl import flags
from keras_dsnet_recipes.lib import checks, data, run, training_flags
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.model_settings import MODELS
from keras_dsnet_recipes.lib.start import start

FLAGS = flags.FLAGS
training_flags.define_training()
shared.define_workdir()
shared.define_channels(
    None, "Multiplier of all channel counts. Defaults to 1.", None, "Total stride. Defaults to 32."
)
training_flags.define_front_and_strides()
training_flags.define_schedule(150, None, " Defaults to the rate of the paper.")
training_flags.define_warmup_and_decay()
training_flags.define_recalibration()
shared.define_blocks("exits", (5, 9), "Blocks that an early exit follows.")


def check_flags():
    """Raises an error for a missing file or folder, and for flags that contradict each other."""
    checks.check_run()
    if FLAGS.mixed_precision != "none" or FLAGS.strategy != "default":
        raise ValueError(
            "early_exit.py trains in float32 on one device. Received: "
            f"--mixed_precision={FLAGS.mixed_precision}, --strategy={FLAGS.strategy}"
        )
    checks.check_strides("ds_mobilenet", MODELS["ds_mobilenet"].strides)
    checks.check_warmup()


def make_network(classes):
    """Returns the DS-MobileNet whose widest path is trained."""
    from keras_dsnet.applications import DSMobileNet

    size = data.image_size()
    return DSMobileNet(
        input_shape=(size, size, 3),
        classes=classes,
        classifier_activation=None,
        alpha=FLAGS.alpha,
        output_stride=FLAGS.output_stride and int(FLAGS.output_stride),
        front_alpha=FLAGS.front_alpha,
        strides=FLAGS.strides,
    )


def make_trainer(model, total_steps, steps_per_epoch):
    """Returns the trainer, compiled with the optimizer and schedule of stage I."""
    from keras_dsnet_recipes.lib.early_exit import EarlyExitTrainer

    from keras_dsnet.training import L2SGD, cosine_schedule, scaled_learning_rate

    rate = FLAGS.learning_rate
    rate = MODELS["ds_mobilenet"].learning_rate if rate is None else rate
    scaled = scaled_learning_rate(rate, FLAGS.batch_size)
    run.print_learning_rate(rate, scaled)
    warmup_steps = min(round(FLAGS.warmup_epochs * steps_per_epoch), total_steps - 1)
    trainer = EarlyExitTrainer(model)
    schedule = cosine_schedule(scaled, total_steps, warmup_steps=warmup_steps)
    trainer.compile(L2SGD(schedule, weight_decay=FLAGS.weight_decay))
    return trainer


def main(_):
    from keras_dsnet_recipes.lib.early_exit import (
        build_early_exit,
        collect_exits,
        exit_rows,
        recalibrate_exits,
        split_at_exits,
    )

    from keras_dsnet.runs import TrainingRun, write_table

    run.open_workdir(check_only=True)
    # Before the images are read and the folder is made. The seed is set after it.
    split_at_exits(make_network(FLAGS.classes or 2), FLAGS.exits)
    run.prepare_machine()
    train, evaluation = data.load_sources()
    workdir = run.open_workdir()
    steps_per_epoch = train.steps_per_epoch(FLAGS.batch_size)
    network = make_network(FLAGS.classes or train.num_classes)
    size = network.input_shape[1:3]
    model, madds = build_early_exit(network, FLAGS.exits)

    def evaluate():
        batches = data.evaluation_dataset(network, evaluation, size)
        return exit_rows(collect_exits(model, batches, madds), FLAGS.exits)

    training = TrainingRun(
        make_trainer(model, FLAGS.epochs * steps_per_epoch, steps_per_epoch),
        workdir,
        lambda step: data.training_dataset(network, train, step, size),
        batch_size=FLAGS.batch_size,
        steps_per_epoch=steps_per_epoch,
        epochs=FLAGS.epochs,
        checkpoint_steps=FLAGS.checkpoint_steps,
        evaluate=evaluate,
        evaluate_epochs=FLAGS.evaluate_epochs,
        class_names=train.class_names,
        num_images=train.num_examples,
    )

    file = workdir.path / "model.keras"
    was_complete = training.is_complete()

    def save():
        # The file of a finished run is recalibrated, and this network is not yet.
        if not (was_complete and file.is_file()):
            run.save_model(model, file)

    run.fit(training, save)
    batches = data.training_dataset(network, train, 0, size)
    recalibrate_exits(model, batches, min(FLAGS.recalibration_steps, steps_per_epoch))
    run.save_model(model, file)
    print(write_table(evaluate(), workdir.path / "tables", "paths"), flush=True)


if __name__ == "__main__":
    start(main, check_flags)
