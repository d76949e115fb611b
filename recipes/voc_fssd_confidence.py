r"""Chooses the confidence by which a detector routes images, for a budget of multiply-adds.

    python recipes/voc_fssd_confidence.py --detector=runs/pets --dataset=pets/ --eval_split=val \
        --max_madds=700e6 --workdir=runs/pets_confidence

The slimmest of --steps runs on every image, and the images of which it is unsure run the widest
too. The program measures for each confidence (the largest score, the number of scores that are
neither clear nor absent, the entropy) how well it tells the images of which the slimmest misses a
box: the area under the curve, where 0.5 is chance. With --max_madds it sets the best one, or that
of --measure, and the threshold that sends on as many images as the budget allows.

The images must not have trained the detector, and the choice fits them: measure it on others.

The program writes into the work directory tables/confidences.csv and .json and, with --max_madds,
detector.keras and labels.txt.
"""

import pathlib

from absl import flags
from keras_dsnet_recipes.lib import checks, data, detection, run
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.start import start

CONFIDENCES = ("largest_score", "clear_scores", "low_entropy")
FLAGS = flags.FLAGS
detection.define_data()
shared.define_workdir("Folder that the table and the detector are written into.")
shared.define_path(
    "detector", None, "Work directory of voc_fssd.py, or a .keras file.", required=True
)
shared.define_steps("those of the detector: the narrowest and the widest of its routes")
shared.define_number(
    "max_madds", None, "Maximum of the mean MAdds of an image. Defaults to no choice.", above=0
)
flags.DEFINE_enum(
    "measure", None, CONFIDENCES, "What routing reads. Defaults to the best of the table."
)
shared.define_number(
    "score_threshold", 0.3, "Lowest probability of a box that counts as found.", above=0, below=1
)


def check_flags():
    """Raises an error for a missing file, and for a value that does not fit the detector."""
    checks.check_workdir(FLAGS.workdir, folders=["tables"], files=["detector.keras", "labels.txt"])
    detection.check_data()
    detection.check_saved_detector("steps")
    detection.check_other_folder()
    checks.check_no_run(FLAGS.workdir)
    if FLAGS.steps and len(FLAGS.steps) != 2:
        raise ValueError(
            "--steps must be two widths, of which the second is the last. "
            f"Received: --steps={','.join(map(str, FLAGS.steps))}"
        )
    if FLAGS.measure and FLAGS.max_madds is None:
        raise ValueError("--measure needs --max_madds, for which a threshold is chosen")


def main(_):
    from keras_dsnet.detection import calibrate_detector, compare_confidences
    from keras_dsnet.detection.calibrate_detector import confidence_costs
    from keras_dsnet.runs import write_table

    detector = detection.load_detector()
    source = detection.load_evaluation_source(detector)
    detection.check_classes(detector, source)
    data.print_source("choosing on", source)
    if FLAGS.steps:
        detector.confidence_steps = FLAGS.steps
    if FLAGS.max_madds is not None:
        # A budget that cannot be kept is found before the images are read.
        confidence_costs(detector, FLAGS.max_madds)
    first = detector.confidence_steps[0]
    workdir = pathlib.Path(FLAGS.workdir)
    batches = detection.evaluation_dataset(detector, source)
    rows = compare_confidences(detector, batches, first, score_threshold=FLAGS.score_threshold)
    print(write_table(rows, workdir / "tables", "confidences"), flush=True)
    if rows[0]["auc"] is None:
        missed = "every image" if rows[0]["missed"] else "no image"
        print(f"width {first} misses a box of {missed}: there is nothing to tell apart", flush=True)
    if FLAGS.max_madds is None:
        return
    detector.confidence = FLAGS.measure or rows[0]["confidence"]
    row = calibrate_detector(detector, batches, FLAGS.max_madds)
    detector.routing = "confidence"
    run.write_labels(detector, workdir)
    run.save_model(detector, workdir / "detector.keras")
    print(
        f"{detector.confidence}, threshold {row['threshold']:.4f}: {row['share']:.1%} of the "
        f"images go on from width {first}, at {row['madds'] / 1e6:.1f}M MAdds; other images show "
        "what this is worth"
    )
    detection.print_written(workdir)


if __name__ == "__main__":
    start(main, check_flags)
