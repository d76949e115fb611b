"""Splits of frames by blocks: no neighbour on the other side, every class on both."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
from detection_data import picture, write_voc, xml

from keras_dsnet.detection import load_detection_source
from keras_dsnet.detection.frame_split import (
    Range,
    format_ranges,
    read_ranges,
    share_with_neighbour,
    similar_share,
    split_frames,
)

RANGES = pathlib.Path(__file__).resolve().parents[2] / "recipes" / "configs" / "fod_a_ranges.txt"


def frames_of(*runs):
    """Returns names of frames with their classes, for runs `(classes, frames)`."""
    labels = [classes.split() for classes, count in runs for _ in range(count)]
    return {f"{number:05}": shown for number, shown in enumerate(labels)}


@pytest.fixture
def ranges_file(tmp_path):
    def write(ranges):
        path = tmp_path / "ranges.txt"
        path.write_text(format_ranges(ranges, ["A comment."]))
        return path

    return write


def test_a_long_run_gives_its_last_part(ranges_file):
    frames = frames_of(("cat", 100), ("dog", 40))
    ranges, short = split_frames(frames, block=10, gap=3, fraction=0.25)
    splits = read_ranges(ranges_file(ranges), frames)
    assert short == []
    # 75 and 30 frames, without three before each block and three after the first one.
    assert splits["test"] == [f"{n:05}" for n in (*range(75, 100), *range(130, 140))]
    assert splits["train"] == [f"{n:05}" for n in (*range(72), *range(103, 127))]
    assert share_with_neighbour(splits["test"], splits["train"], frames, distance=3) == 0
    assert share_with_neighbour(splits["test"], splits["train"], frames, distance=4) == 3 / 35


def test_classes_with_short_runs_are_on_both_sides(ranges_file):
    runs = [("cat", 60), ("elk", 12), ("cat", 5), ("elk", 25), ("fox", 24), ("gnu owl", 12)]
    frames = frames_of(*runs)
    ranges, short = split_frames(frames, block=10, gap=2)
    splits = read_ranges(ranges_file(ranges), frames)
    tested = {label: [n for n in splits["test"] if label in frames[n]] for label in ("elk", "fox")}
    # The elk of a whole run, half of the fox, and a third of gnu and owl.
    assert tested["elk"] == [f"{n:05}" for n in range(60, 72)]
    assert len(tested["fox"]) == 10
    assert short == ["gnu"]
    for label in ("cat", "elk", "fox", "gnu", "owl"):
        assert all(any(label in frames[name] for name in names) for names in splits.values())


def test_a_gap_can_be_wider_than_half_of_the_frames(ranges_file):
    frames = frames_of(("cat", 8))
    ranges, short = split_frames(frames, block=2, gap=4)
    splits = read_ranges(ranges_file(ranges), frames)
    assert (splits, short) == ({"train": ["00000", "00001"], "test": ["00006", "00007"]}, [])


def test_a_class_that_cannot_be_on_both_sides_is_named():
    with pytest.raises(ValueError, match=r"class 'ant' cannot be on both sides .* it has 3 frames"):
        split_frames(frames_of(("cat", 60), ("ant", 3)), block=10, gap=2)


@pytest.mark.parametrize("mistake", [{"block": 0}, {"gap": -1}, {"fraction": 0.9}])
def test_numbers_out_of_range_are_named(mistake):
    (name,) = mistake
    with pytest.raises(ValueError, match=f"`{name}` must be .* Received: {name}="):
        split_frames(frames_of(("cat", 60)), **mistake)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# only words\n", "holds no range"),
        ("train 1\n", r"line 1 of .* must be a split, its first frame .*Received: 'train 1'"),
        ("train 4 2", r"line 1 of .*Received: 'train 4 2'"),
        ("train 1 3\ntest 3 5", "overlap at frame 3"),
        ("train 1 3\ntest 8 9", "split 'test' of .* has none of the 5 frames"),
    ],
    ids=["empty", "short", "reversed", "overlap", "absent"],
)
def test_mistakes_in_a_file_of_ranges_are_named(tmp_path, text, message):
    (tmp_path / "ranges.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_ranges(tmp_path / "ranges.txt", list("12345"))


def test_names_with_spaces_are_read_as_they_were_written(tmp_path):
    ranges = [Range("train", "frame 1", "frame 3"), Range("test", "frame 5", "frame 5")]
    (tmp_path / "ranges.txt").write_text(format_ranges(ranges, ["two"]))
    names = [f"frame {n}" for n in range(6)]
    splits = read_ranges(tmp_path / "ranges.txt", names)
    assert splits == {"train": names[1:4], "test": names[5:]}


@pytest.mark.parametrize("separator", [" ", "\t"])
def test_only_whole_words_are_comments(tmp_path, separator):
    lines = [("train", "cam#1_0", "cam#1_3"), ("test", "cam#1_5", "cam#1_5")]
    text = "\ufeff# two splits\n" + "\n".join(separator.join(line) for line in lines)
    (tmp_path / "ranges.txt").write_text(text + (" # the end\n" if separator == " " else "\n"))
    names = [f"cam#1_{n}" for n in range(6)]
    splits = read_ranges(tmp_path / "ranges.txt", names)
    assert splits == {"train": names[:4], "test": names[5:]}


def test_ranges_are_the_splits_of_a_folder(tmp_path):
    write_voc(tmp_path, {f"{n:03}": xml(("cat", (1, 2, 20, 30))) for n in range(9)})
    (tmp_path / "ranges.txt").write_text("train 000 004\ntest 006 008\n")
    ranges = {"ranges": tmp_path / "ranges.txt"}
    assert load_detection_source(tmp_path, **ranges).num_examples == 5
    test = load_detection_source(tmp_path, split="eval", **ranges)
    assert sorted(pathlib.Path(path).stem for path in test.paths) == ["006", "007", "008"]
    with pytest.raises(ValueError, match="`ranges` are for a folder in PASCAL VOC form"):
        load_detection_source("voc/2007", **ranges)


def test_the_same_picture_on_both_sides_is_counted(tmp_path):
    paths = {}
    for number, seed in enumerate((0, 1, 2, 3, 4, 5, 1)):
        paths[str(number)] = str(tmp_path / f"{number}.jpg")
        (tmp_path / f"{number}.jpg").write_bytes(picture(seed))
    white = tf.io.encode_jpeg(np.full((60, 40, 3), 255, np.uint8)).numpy()
    (tmp_path / "5.jpg").write_bytes(white)
    assert similar_share(["5", "6"], ["0", "1", "2", "3"], paths) == 0.5
    assert np.isnan(similar_share(["1"], ["0", "1"], paths))


def test_the_ranges_of_fod_a_keep_blocks_and_gaps_apart():
    lines = [line.split() for line in RANGES.read_text().splitlines() if line[0] != "#"]
    ranges = sorted((int(first), int(last), split) for split, first, last in lines)
    for (_, last, split), (first, _, following) in zip(ranges, ranges[1:]):
        # 20 frames between the splits.
        assert split == following or first - last > 20
    tested = [last - first + 1 for first, last, split in ranges if split == "test"]
    trained = sum(last - first + 1 for first, last, split in ranges if split == "train")
    assert (sum(tested), trained) == (7957, 24416)
    # Hose, MetalSheet, Screw, Tape and Wood have too few frames for a block of 200.
    assert sorted(tested)[:6] == [36, 46, 62, 91, 125, 200]
    splits = read_ranges(RANGES, [f"{n:06}" for n in range(33_793)])
    assert {split: len(names) for split, names in splits.items()} == {"train": 24416, "test": 7957}
