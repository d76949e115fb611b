r"""Trains the gate of a detector, which chooses a width for each image.

    python recipes/voc_fssd_gates.py --detector=runs/pets --dataset=pets/ --batch_size=16 \
        --epochs=5 --learning_rate=0.4 --workdir=runs/pets_gates

The detector of --detector, a run of voc_fssd.py, is frozen, and only its slimming head is trained.
An image is easy if the slimmest route finds every box of it, and the gate learns to send easy
images to the slimmest route and the others to the widest. The program prints the share of easy
images. If this share is close to 0 or 1, the gate has nothing to learn. It learns from augmented
images, on which the detector makes more mistakes than on the images that it has seen often.

The learning rate is that at batch 512, is multiplied by --batch_size / 512, and by 0.9 after each
epoch. The program writes into the work directory the files that voc_fssd.py writes. The row
"dynamic" of the table of paths is the routed detector.
"""

from absl import flags
from keras_dsnet_recipes.lib import checks, detection, run, training_flags
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.start import start

FLAGS = flags.FLAGS
detection.define_data()
detection.define_training()
training_flags.define_machine()
shared.define_workdir()
shared.define_path(
    "detector", None, "Work directory of voc_fssd.py, or a .keras file.", required=True
)
shared.define_routes("Candidate widths, such as 0,13. Defaults to the slimmest and the widest.")
training_flags.define_schedule(10, 0.05)
training_flags.define_temperature("Temperature of the soft choice.")
shared.define_numbers("loss_weights", 3, "Weights of the detection, complexity and SGS losses.")
shared.define_number(
    "score_threshold",
    0.3,
    "Lowest probability of a box that counts as found.",
    above=0,
    below=1,
)


def check_flags():
    """Raises an error for a missing file, and for a value that does not fit the detector."""
    checks.check_workdir(FLAGS.workdir, folders=checks.FOLDERS, files=detection.FILES)
    detection.check_data()
    checks.check_plots()
    saved = detection.check_saved_detector()
    detection.check_other_folder()
    if saved.num_gates > 1:
        raise ValueError(
            f"--detector={FLAGS.detector} must have one gate. Received: {saved.num_gates} gates"
        )
    if FLAGS.loss_weights is not None and not any(FLAGS.loss_weights):
        raise ValueError("--loss_weights must not all be 0. Received: --loss_weights=0,0,0")


def make_trainer(detector, steps_per_epoch):
    """Returns the trainer, compiled with the paper's optimizer and schedule."""
    import keras

    from keras_dsnet.detection import DetectionGateTrainer
    from keras_dsnet.training import exponential_schedule, scaled_learning_rate

    trainer = DetectionGateTrainer(
        detector,
        routes=FLAGS.routes or (0, detector.num_widths - 1),
        loss_weights=FLAGS.loss_weights or (1.0, 0.5, 1.0),
        temperature=FLAGS.temperature,
        score_threshold=FLAGS.score_threshold,
        seed=FLAGS.seed,
    )
    rate = scaled_learning_rate(FLAGS.learning_rate, FLAGS.batch_size)
    run.print_learning_rate(FLAGS.learning_rate, rate)
    schedule = exponential_schedule(rate, steps_per_epoch)
    trainer.compile(keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True))
    detector.gates_trained = True
    if detector.routing != "gate":
        print(
            f"note: --detector={FLAGS.detector} routes by {detector.routing}. The detector of this "
            "run routes by its gates; voc_fssd_confidence.py chooses thresholds",
            flush=True,
        )
        detector.routing = "gate"
    return trainer


def main(_):
    from keras_dsnet.runs import read_log

    run.open_workdir(check_only=True)
    scope = run.prepare_machine()
    train, evaluation = detection.load_sources()
    workdir = run.open_workdir()
    steps_per_epoch = train.steps_per_epoch(FLAGS.batch_size)
    with scope:
        detector = detection.load_detector(train)
        trainer = make_trainer(detector, steps_per_epoch)
    training = run.make_training(
        trainer,
        workdir,
        lambda step, **shard: detection.training_dataset(detector, train, step, **shard),
        train,
        detection.quick_evaluation(detector, evaluation, ["dynamic"]),
        progress_names=["loss", "accuracy", "gate_accuracy", "easy", "madds", "learning_rate"],
    )

    def save():
        run.write_labels(detector, workdir.path)
        run.save_model(detector, workdir.path / "detector.keras")

    if not run.fit(training, save):
        return
    paths = detector.routes if FLAGS.paths is None else detection.chosen_paths(detector)
    detection.report(detector, evaluation, paths, workdir.path, workdir.log)
    # The log has this figure also if the run had ended before and has trained nothing now.
    easy = float(read_log(workdir.log)[-1]["easy"])
    print(f"the slimmest route found every box of {easy:.1%} of the last epoch's images")
    detection.print_written(workdir.path)


if __name__ == "__main__":
    start(main, check_flags)
