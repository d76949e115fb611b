r"""Splits the frames of videos in PASCAL VOC form by contiguous blocks.

    python recipes/split_frames.py --dataset=/data/fod --workdir=runs/split
    python recipes/split_frames.py --dataset=/data/fod --workdir=runs/split \
        --ranges=recipes/configs/fod_a_ranges.txt

Neighbouring frames of a video are nearly the same picture, so a split at random tests memory. The
program writes ranges.txt, the ranges of frames of both splits, and tables/, the frames of each
class, into the work directory. It prints the share of test frames that have a neighbour in
training, and of those that are nearly the picture of some training frame: for its split and for the
lists of the data set. With --ranges it checks that file instead of making one. Comparing the
pictures of 34,000 frames takes two minutes.
"""

import pathlib

from absl import flags
from keras_dsnet_recipes.lib import checks
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.start import start

FLAGS = flags.FLAGS
shared.define_workdir("Folder that the ranges and the tables are written into.")
shared.define_path("dataset", None, "Folder of frames in PASCAL VOC form, sorted by name.")
shared.define_path("ranges", None, "File of ranges to check. By default, one is made.")
flags.DEFINE_integer("block", 200, "Least number of frames of a test block.", lower_bound=1)
flags.DEFINE_integer("gap", 20, "Number of frames between the splits.", lower_bound=0)
shared.define_number("fraction", 0.25, "Share of a long run to test on.", above=0, high=0.5)
flags.DEFINE_bool("pictures", True, "Compare the pictures of the splits.")


def check_flags():
    """Raises an error for a mistake in the flags or in the files that they name."""
    checks.check_workdir(FLAGS.workdir, folders=["tables"], files=["ranges.txt"])
    if FLAGS.dataset is None:
        raise ValueError("--dataset must name a folder in PASCAL VOC form")
    if not pathlib.Path(FLAGS.dataset).is_dir():
        raise FileNotFoundError(f"--dataset={FLAGS.dataset}: there is no such folder")
    if FLAGS.ranges is not None and not pathlib.Path(FLAGS.ranges).is_file():
        raise FileNotFoundError(f"--ranges={FLAGS.ranges}: there is no such file")


def report(name, train, test, frames):
    """Prints how near the frames of two splits are."""
    from keras_dsnet.detection.frame_split import share_with_neighbour, similar_share

    names = list(frames)
    line = f"{name}: {len(set(train))} frames to train on, {len(set(test))} to test on; "
    line += f"{100 * share_with_neighbour(test, train, names):.1f} % of these have a neighbour in "
    line += f"training, {100 * share_with_neighbour(test, train, names, FLAGS.gap):.1f} % a frame "
    line += f"within {FLAGS.gap}"
    if FLAGS.pictures:
        paths = {key: frame.path for key, frame in frames.items()}
        share = similar_share(test, train, paths)
        same = "all are training frames themselves"
        line += f"; {100 * share:.1f} % are as like a training frame as half of all neighbours are"
        line = line if share == share else f"{line.rpartition(';')[0]}; {same}"
    print(line, flush=True)


def main(_):
    from keras_dsnet.data.folder_layout import split_kind
    from keras_dsnet.detection.annotations import default_splits
    from keras_dsnet.detection.frame_split import format_ranges, read_ranges, split_frames
    from keras_dsnet.detection.voc_folder import read_frames
    from keras_dsnet.runs import write_table

    frames, lists = read_frames(pathlib.Path(FLAGS.dataset))
    classes = {name: frame.names for name, frame in frames.items()}
    folder = pathlib.Path(FLAGS.workdir) / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    written = folder.parent / "ranges.txt"
    if FLAGS.ranges is None:
        ranges, short = split_frames(classes, FLAGS.block, FLAGS.gap, FLAGS.fraction)
        about = [
            "Contiguous blocks of frames: split, first frame, last frame.",
            f"python recipes/split_frames.py --block={FLAGS.block} --gap={FLAGS.gap} "
            f"--fraction={FLAGS.fraction}",
        ]
        if short:
            line = f"classes with a test block of less than {FLAGS.block} frames: "
            about.append(line + ", ".join(short))
            print(about[-1])
        written.write_text(format_ranges(ranges, about), encoding="utf-8")
    splits = read_ranges(FLAGS.ranges or written, frames)
    chosen = default_splits(list(splits), split_kind, str(FLAGS.ranges or written))
    if "eval" not in chosen:
        raise ValueError(
            f"--ranges={FLAGS.ranges} must have a split to evaluate on, such as test. "
            f"Received: {', '.join(splits)}"
        )
    rows = [
        {
            "class": label,
            **{split: sum(label in classes[name] for name in splits[split]) for split in splits},
        }
        for label in sorted({label for shown in classes.values() for label in shown})
    ]
    print(write_table(rows, folder, "frames"))
    report("ranges", splits[chosen["train"]], splits[chosen["eval"]], frames)
    # The lists name frames without objects too.
    lists = {name: [key for key in keys if key in frames] for name, keys in lists.items()}
    known = {"train": lists.get("trainval") or lists.get("train"), "test": lists.get("test")}
    if all(known.values()):
        report("lists of the data set", known["train"], known["test"], frames)
    print(f"\nwritten: {', '.join(map(str, filter(pathlib.Path.exists, [written, folder])))}")


if __name__ == "__main__":
    start(main, check_flags)
