r"""Trains a detector, FSSD on a dynamic backbone, at all widths.

The settings of the paper: 300 epochs at batch 128 on PASCAL VOC 2007 and 2012, from a supernet of
stage I. This run has not been made with this package.

    python recipes/voc_fssd.py --flagfile=recipes/configs/voc_fssd.cfg --data_dir=/data/tfds \
        --backbone=runs/imagenet --workdir=runs/voc

Your own boxes, a folder in the form of PASCAL VOC, or a COCO json file with the folder of its
images:

    python recipes/voc_fssd.py --dataset=pets/ --backbone=runs/flowers --workdir=runs/pets \
        --head=light --batch_size=16 --epochs=60 --learning_rate=0.16
    python recipes/voc_fssd.py --dataset=labels.json --data_dir=photos/ --backbone=runs/flowers \
        --workdir=runs/signs --head=light --batch_size=16 --epochs=60 --learning_rate=0.16

Without a flag file the program trains on voc/2007+2012 by the schedule of the paper. The learning
rate is 0.004 at batch 128, is multiplied by --batch_size / 128, and is divided by ten after two
thirds and after five sixths of the epochs. Each step trains the widest sub-network, random ones
and the slimmest on the same batch. --alone trains a detector of one width, for a comparison.

The program writes into the work directory:
- checkpoint.npz, from which the same command continues a run that was stopped;
- log.csv and tensorboard/;
- labels.txt, the names of the classes in the order of the scores;
- detector.keras, the detector with recalibrated batch norm;
- tables/ and plots/: average precision against multiply-adds and of each class, curves of
  precision, and images with the boxes that the detector found.

Batches, augmentation and random widths are functions of --seed and the step. A run that was killed
and resumed therefore ends with the weights of an uninterrupted run, bit for bit with
--deterministic. The same command with more --epochs trains a run longer, with the learning rates of
the new total from then on.
"""

from absl import flags
from keras_dsnet_recipes.lib import checks, detection, run, training_flags
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.start import start

FLAGS = flags.FLAGS
# The batch size of the paper's learning rate.
BASE_BATCH = 128
detection.define_data()
detection.define_training()
training_flags.define_machine()
shared.define_workdir()
detection.define_detector()
shared.define_batch_size(BASE_BATCH, "Images per step, summed over all replicas.")
training_flags.define_epochs(300)
shared.define_number(
    "learning_rate",
    0.004,
    "Learning rate at batch 128, which is multiplied by --batch_size / 128.",
    low=0,
)
training_flags.define_warmup_and_decay(5e-4)
shared.define_numbers(
    "decay_epochs",
    2,
    "Epochs after which the learning rate is divided by ten. Defaults to two thirds and five "
    "sixths of --epochs.",
)
shared.define_number("momentum", 0.9, "Momentum of SGD.", low=0, below=1)
training_flags.define_target(
    ["ema", "boxes"],
    "What the random and the slimmest sub-networks learn classes from: the boxes, or the widest "
    "sub-network of the moving average.",
)
training_flags.define_sandwich("Width to train alone, for a comparison.")
shared.define_number(
    "ema_momentum", 0.997, "Momentum of the moving average that teaches.", low=0, below=1
)
shared.define_number(
    "negative_ratio", 3.0, "Number of hard negatives for each matched anchor.", above=0
)
flags.DEFINE_enum(
    "classification",
    "cross_entropy",
    ["cross_entropy", "focal"],
    "Loss of the classes: cross entropy with hard negatives, or focal loss of all anchors.",
)
training_flags.define_recalibration()


def check_flags():
    """Raises an error for a missing file or folder, and for flags that contradict each other."""
    checks.check_workdir(FLAGS.workdir, folders=checks.FOLDERS, files=detection.FILES)
    detection.check_data()
    checks.check_plots()
    widths = detection.check_detector()
    if FLAGS.alone is not None and widths and FLAGS.alone >= widths:
        raise ValueError(
            f"--alone must be a width from 0 to {widths - 1}. Received: --alone={FLAGS.alone}"
        )
    checks.check_warmup()
    if FLAGS.decay_epochs is not None and not FLAGS.decay_epochs[0] < FLAGS.decay_epochs[1]:
        raise ValueError(
            "--decay_epochs must ascend. "
            f"Received: --decay_epochs={','.join(f'{epoch:g}' for epoch in FLAGS.decay_epochs)}"
        )


def make_trainer(detector, steps_per_epoch):
    """Returns the trainer, compiled with the paper's optimizer and schedule."""
    from keras_dsnet.detection import DetectionTrainer
    from keras_dsnet.training import L2SGD, scaled_learning_rate, step_schedule

    trainer = DetectionTrainer(
        detector,
        target=FLAGS.target,
        num_random=FLAGS.num_random,
        negative_ratio=FLAGS.negative_ratio,
        classification=FLAGS.classification,
        ema_momentum=FLAGS.ema_momentum,
        label_path="widest" if FLAGS.alone is None else FLAGS.alone,
        sandwich=FLAGS.alone is None,
        decay_norms_and_biases=FLAGS.decay_norms_and_biases,
        seed=FLAGS.seed,
    )
    rate = scaled_learning_rate(FLAGS.learning_rate, FLAGS.batch_size, BASE_BATCH)
    run.print_learning_rate(FLAGS.learning_rate, rate, BASE_BATCH)
    epochs = FLAGS.decay_epochs or (FLAGS.epochs * 2 / 3, FLAGS.epochs * 5 / 6)
    first, second = (round(epoch * steps_per_epoch) for epoch in epochs)
    schedule = step_schedule(
        rate,
        [first, max(second, first + 1)],  # both are the same step if there are only a few steps
        warmup_steps=round(FLAGS.warmup_epochs * steps_per_epoch),
    )
    optimizer = L2SGD(
        schedule, momentum=FLAGS.momentum, nesterov=False, weight_decay=FLAGS.weight_decay
    )
    trainer.compile(optimizer)
    return trainer


def reset_gates(detector):
    """Forgets how --backbone was routed, because this stage changes the weights of its gates."""
    if detector.gates_trained:
        print(
            f"note: the gates of --backbone={FLAGS.backbone} will not fit the weights of this run: "
            "voc_fssd_gates.py trains them again",
            flush=True,
        )
    detector.reset_gates()


def recalibrate(detector, train, steps, paths):
    """Recalibrates batch norm on training images; prints a hint if that fails."""
    from keras_dsnet.training import recalibrate_batch_norm

    batches = detection.training_dataset(detector, train, 0)
    try:
        recalibrate_batch_norm(detector, batches, paths, steps=steps)
    except BaseException:
        print(
            f"{FLAGS.workdir}/detector.keras has no recalibrated batch norm yet: the same command "
            "recalibrates it without training again",
            flush=True,
        )
        raise


def main(_):
    run.open_workdir(check_only=True)
    if run.checks_network_first():
        # A large folder takes minutes to read, so a mistake in the network's flags is found before.
        detection.make_detector()
    scope = run.prepare_machine()
    train, evaluation = detection.load_sources()
    workdir = run.open_workdir()
    steps_per_epoch = train.steps_per_epoch(FLAGS.batch_size)
    with scope:
        detector = detection.make_detector(train)
        reset_gates(detector)
        trainer = make_trainer(detector, steps_per_epoch)
    detection.print_detector(detector)
    paths = detection.chosen_paths(detector) if FLAGS.alone is None else [FLAGS.alone]
    ends = [0, detector.num_widths - 1] if FLAGS.alone is None else paths
    training = run.make_training(
        trainer,
        workdir,
        lambda step, **shard: detection.training_dataset(detector, train, step, **shard),
        train,
        detection.quick_evaluation(detector, evaluation, ends),
    )

    def save():
        trainer.load_teacher()
        run.write_labels(detector, workdir.path)
        run.save_model(detector, workdir.path / "detector.keras")

    if not run.fit(training, save):
        return
    statistics = None if FLAGS.alone is None else paths
    recalibrate(detector, train, min(FLAGS.recalibration_steps, steps_per_epoch), statistics)
    run.save_model(detector, workdir.path / "detector.keras")
    detection.report(detector, evaluation, paths, workdir.path, workdir.log)
    detection.print_written(workdir.path)


if __name__ == "__main__":
    start(main, check_flags)
