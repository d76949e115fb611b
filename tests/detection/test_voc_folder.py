"""Folders in PASCAL VOC form: what is read, and what is said about mistakes."""

import os

import numpy as np
import pytest
from detection_data import picture, write_voc, xml
from PIL import Image

from keras_dsnet.detection import load_detection_source, voc_folder

CAT = ("cat", (2, 5, 22, 35))


SPLITS = ("train", "eval")
SPLITS_OF_FOLDERS = ("test", "train", "valid")


def _boxes(source):
    return np.concatenate([image.boxes for image in source.objects])


def test_boxes_are_relative_to_their_image(tmp_path):
    write_voc(tmp_path, {"a": xml(("cat", (4, 6, 20, 30.5))), "b": xml(CAT)}, {"train": ["a"]})
    write_voc(tmp_path, {}, {"test": ["b"]})
    source = load_detection_source(tmp_path)
    np.testing.assert_allclose(_boxes(source), [[6 / 60, 4 / 40, 30.5 / 60, 20 / 40]], rtol=1e-6)
    assert source.class_names == ("cat",)
    assert source.notes == ()


def test_the_lists_are_the_splits(voc_folder):
    train = load_detection_source(voc_folder)
    held_out = load_detection_source(voc_folder, split="eval")
    assert (train.num_examples, train.split) == (9, "train")
    assert (held_out.num_examples, held_out.split) == (3, "val")
    assert train.class_names == held_out.class_names == ("cat", "dog")
    assert train.class_counts == (9, 3)
    assert not {*train.paths} & {*held_out.paths}


def test_a_slice_of_a_list_can_be_opened(voc_folder):
    parts = [f"train[:{4}]", f"train[{4}:]"]
    first, rest = [load_detection_source(voc_folder, train_split=part) for part in parts]
    assert (first.num_examples, rest.num_examples) == (4, 5)
    assert not {*first.paths} & {*rest.paths}


def test_training_and_test_lists_of_the_challenge(tmp_path):
    lists = {"trainval": ["a", "b"], "val": ["b"], "test": ["c"], "cat_train": ["a  1", "b -1"]}
    write_voc(tmp_path, dict.fromkeys("abc", xml(CAT)), lists)
    assert load_detection_source(tmp_path).split == "trainval"
    assert load_detection_source(tmp_path, split="eval").split == "test"
    with pytest.raises(ValueError, match=r"it has 'test' \(1 images\), 'trainval' \(2 images\)"):
        load_detection_source(tmp_path, train_split="cat_train")


def test_images_of_both_lists_are_not_trained_on(tmp_path):
    write_voc(tmp_path, dict.fromkeys("abc", xml(CAT)), {"train": ["a", "b"], "test": ["b", "c"]})
    source = load_detection_source(tmp_path)
    assert [path[-5:] for path in source.paths] == ["a.jpg"]
    assert "1 images of the list 'train' are also in 'test'" in source.notes[0]
    assert load_detection_source(tmp_path, split="eval").num_examples == 2


def test_images_of_the_list_that_is_evaluated_are_not_trained_on(tmp_path):
    lists = {"train": ["a", "b"], "val": ["c"], "test": ["b"]}
    write_voc(tmp_path, dict.fromkeys("abc", xml(CAT)), lists)
    for spec in ("test", "test[:1]"):
        source = load_detection_source(tmp_path, eval_split=spec)
        assert [path[-5:] for path in source.paths] == ["a.jpg"]
        assert f"1 images of the list 'train' are also in '{spec}'" in source.notes[0]
    whole = load_detection_source(tmp_path, train_split="train", eval_split="test")
    assert whole.num_examples == 2
    with pytest.raises(ValueError, match="split 'dev' of data set"):
        load_detection_source(tmp_path, eval_split="dev")


class Reversed:
    """Lists a folder backwards, as another file system may."""

    def __init__(self, folder, scandir=os.scandir):
        with scandir(folder) as entries:
            self._entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

    def __enter__(self):
        return iter(self._entries)

    def __exit__(self, *_):
        pass


def test_the_same_images_are_held_out_on_every_file_system(tmp_path, monkeypatch):
    write_voc(tmp_path, {f"{n:02}": xml(CAT) for n in range(40)})
    (tmp_path / "JPEGImages" / "07.png").write_bytes(b"a mask")
    before = [load_detection_source(tmp_path, split=s).paths for s in ("train", "eval")]
    monkeypatch.setattr(voc_folder.os, "scandir", Reversed)
    assert [load_detection_source(tmp_path, split=s).paths for s in ("train", "eval")] == before


def test_a_box_that_reaches_too_far_moves_no_other_box(tmp_path):
    # The image is 40x60, and the annotation was made for twice that.
    boxes = (20, 30, 40, 60), (70, 30, 81, 60)
    content = xml(*(("cat", box) for box in boxes), size=(80, 120))
    write_voc(tmp_path, {"a": content}, {"train": ["a"], "val": ["a"]})
    source = load_detection_source(tmp_path, train_split="train")
    expected = [[0.25, 0.25, 0.5, 0.5], [0.25, 0.875, 0.5, 1]]
    np.testing.assert_allclose(_boxes(source), expected, rtol=1e-6)
    assert any("boxes that reach beyond their image are clipped" in note for note in source.notes)


def test_height_and_width_that_are_swapped_are_those_of_the_image(tmp_path):
    content = xml(("cat", (10, 15, 20, 30)), size=(60, 40))
    write_voc(tmp_path, {"a": content}, {"train": ["a"], "val": ["a"]})
    source = load_detection_source(tmp_path, train_split="train")
    np.testing.assert_allclose(_boxes(source), [[0.25, 0.25, 0.5, 0.5]], rtol=1e-6)


def test_the_only_list_is_trained_on_by_any_name(tmp_path):
    names = [f"{n:02}" for n in range(20)]
    write_voc(tmp_path, dict.fromkeys(names, xml(CAT)), {"default": names})
    counts = [load_detection_source(tmp_path, split=s).num_examples for s in ("train", "eval")]
    assert counts == [18, 2]


def test_without_lists_a_tenth_is_held_out(tmp_path):
    for number in range(20):
        folder = tmp_path / "shop" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(picture(number))
        (tmp_path / "shop" / "annots").mkdir(exist_ok=True)
        (tmp_path / "shop" / "annots" / f"{number}.xml").write_text(xml(CAT))
    # The data set may also lie one folder below.
    train, test = [load_detection_source(tmp_path, split=split) for split in ("train", "eval")]
    assert (train.num_examples, test.num_examples) == (18, 2)
    assert not {*train.paths} & {*test.paths}
    assert "2 of 20 images are held out" in train.notes[0]


def test_without_lists_an_image_without_annotation_is_named(tmp_path):
    write_voc(tmp_path, {str(number): xml(CAT) for number in range(20)})
    for name in ("x", "y"):
        (tmp_path / "JPEGImages" / f"{name}.jpg").write_bytes(picture(0))
    source = load_detection_source(tmp_path)
    assert source.num_examples == 18
    assert any(note.startswith("2 images have no annotation: ") for note in source.notes)
    with pytest.raises(ValueError, match=r"2 images have no annotation: .*x\.jpg"):
        load_detection_source(tmp_path, on_bad_image="raise")


def test_a_folder_of_one_split_needs_no_training_images_to_evaluate(tmp_path):
    names = [str(number) for number in range(10)]
    write_voc(tmp_path, dict.fromkeys(names, xml(CAT)), {"test": names})
    assert load_detection_source(tmp_path, split="eval").num_examples == 10
    splits = {"train_split": "test[:80%]", "eval_split": "test[80%:]"}
    counts = [load_detection_source(tmp_path, split=s, **splits).num_examples for s in SPLITS]
    assert counts == [8, 2]
    with pytest.raises(ValueError, match=r"a list of images for training, .* Received: test$"):
        load_detection_source(tmp_path)


def test_missing_files_of_a_split_folder_are_named_by_their_place(tmp_path):
    for name in SPLITS_OF_FOLDERS:
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.jpg").write_bytes(picture(number))
            (tmp_path / name / f"{number}.xml").write_text(xml(CAT))
    (tmp_path / "valid" / "0.jpg").unlink()
    (tmp_path / "valid" / "1.xml").unlink()
    train, valid = (load_detection_source(tmp_path, split=split) for split in SPLITS)
    assert (train.notes, valid.num_examples) == ((), 1)
    missing, unlabelled = valid.notes
    assert missing == f"1 images are missing: {tmp_path / 'valid' / '0'}; left out"
    assert unlabelled == f"1 images have no annotation: {tmp_path / 'valid' / '1.jpg'}; left out"


def test_split_folders_with_images_beside_their_annotations(tmp_path):
    for name, count in (("train", 3), ("valid", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.jpg").write_bytes(picture(number))
            (tmp_path / name / f"{number}.xml").write_text(xml(CAT))
    assert load_detection_source(tmp_path).num_examples == 3
    assert load_detection_source(tmp_path, split="eval").num_examples == 2


def test_difficult_objects_keep_their_flag(voc_folder):
    source = load_detection_source(voc_folder)
    assert sum(image.difficult.sum() for image in source.objects) == 1
    assert not any(image.crowd.any() for image in source.objects)


def test_an_image_without_a_box_is_kept(tmp_path):
    write_voc(tmp_path, {"a": xml(CAT), "b": xml()}, {"train": ["a", "b"], "val": ["a"]})
    source = load_detection_source(tmp_path, train_split="train")
    assert sorted(len(image.boxes) for image in source.objects) == [0, 1]
    assert source.description.endswith("1 boxes, 1 images without a box")


def test_boxes_outside_and_without_area(tmp_path):
    objects = [
        ("cat", (-10, 5, 20, 30)),  # clipped
        ("cat", (7, 7, 7, 30)),  # no width
        ("cat", (20, 5, 2, 30)),  # turned round
        ("cat", (50, 5, 60, 30)),  # outside
        ("cat", (0, 0, 40.01, 60)),  # rounded
    ]
    write_voc(tmp_path, {"a": xml(*objects), "b": xml(CAT)}, {"train": ["a"], "val": ["b"]})
    source = load_detection_source(tmp_path)
    np.testing.assert_allclose(_boxes(source), [[5 / 60, 0, 0.5, 0.5], [0, 0, 1, 1]], rtol=1e-6)
    assert [note.split(":")[0] for note in source.notes] == [
        "3 boxes without area in their image are left out",
        "1 boxes that reach beyond their image are clipped",
    ]


def test_missing_files_are_left_out_with_a_note_or_raise(voc_folder):
    (voc_folder / "Annotations" / "im 1.xml").unlink()
    (voc_folder / "JPEGImages" / "im 2.jpg").unlink()
    source = load_detection_source(voc_folder)
    assert source.num_examples == 7
    assert "1 annotations are missing" in source.notes[0]
    assert "im 1.xml; left out" in source.notes[0]
    # A name in a list may have a folder before it, which is no folder of a split.
    with (voc_folder / "ImageSets/Main/train.txt").open("a") as file:
        file.write("batch/im 99\n")
    assert "2 annotations are missing" in load_detection_source(voc_folder).notes[0]
    (voc_folder / "ImageSets/Main/train.txt").write_text("\n".join(f"im {i}" for i in range(9)))
    assert "1 images are missing" in source.notes[1]
    with pytest.raises(ValueError, match=r"1 annotations are missing: .*im 1\.xml"):
        load_detection_source(voc_folder, on_bad_image="raise")


def test_a_truncated_image_is_named_and_left_out(voc_folder):
    path = voc_folder / "JPEGImages" / "im 3.jpg"
    path.write_bytes(path.read_bytes()[:900])
    source = load_detection_source(voc_folder)
    assert source.num_examples == 8
    assert "skipped 1 of 9 images" in source.notes[0]
    assert "im 3.jpg" in source.notes[0]
    with pytest.raises(ValueError, match=r"im 3\.jpg cannot be read"):
        load_detection_source(voc_folder, on_bad_image="raise")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation><object>", "no element found"),
        (xml(("cat", (1, 2, "x", 3))), "of 'cat' must have the numbers xmin, ymin.*: 1, 2, x, 3"),
        (xml(("cat", (1, 2, "nan", 3))), "must have the numbers"),
        (xml(("", (1, 2, 3, 4))), "an object has no name"),
    ],
    ids=["cut", "word", "nan", "nameless"],
)
def test_a_broken_annotation_is_named(voc_folder, content, message):
    (voc_folder / "Annotations" / "im 4.xml").write_text(content)
    with pytest.raises(ValueError, match=rf"im 4\.xml cannot be read: .*{message}"):
        load_detection_source(voc_folder, on_bad_image="raise")
    source = load_detection_source(voc_folder)
    assert source.num_examples == 8
    assert "1 annotations are left out" in source.notes[0]


def test_class_names_fix_the_order_and_unknown_ones_raise(voc_folder):
    source = load_detection_source(voc_folder, class_names=["fox", "dog", "cat"])
    assert source.class_counts == (0, 3, 9)
    assert source.notes == ("split 'train' has no box of 1 classes: fox",)
    with pytest.raises(
        ValueError, match=r"unknown class 'dog': the classes are 'cat', 'dogs'; did"
    ):
        load_detection_source(voc_folder, class_names=["cat", "dogs"])


def test_annotations_of_another_size_than_the_image(tmp_path):
    # The image was made smaller after it was annotated.
    content = xml(("cat", (40, 60, 80, 120)), size=(80, 120))
    write_voc(tmp_path, {"a": content, "b": xml(CAT)}, {"train": ["a"], "val": ["b"]})
    source = load_detection_source(tmp_path)
    np.testing.assert_allclose(_boxes(source), [[0.5, 0.5, 1, 1]])
    assert "1 images have another size than stated" in source.notes[0]


@pytest.mark.parametrize(("stated", "turned"), [((60, 40), True), ((40, 60), False)])
def test_a_turned_photograph_is_read_as_its_annotation_saw_it(tmp_path, stated, turned):
    content = xml(("cat", (0, 0, stated[0] / 2, stated[1])), size=stated)
    write_voc(tmp_path, {"a": content, "b": xml(CAT)}, {"train": ["a"], "val": ["b"]})
    path = tmp_path / "JPEGImages" / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    source = load_detection_source(tmp_path)
    np.testing.assert_allclose(_boxes(source), [[0, 0, 1, 0.5]])
    assert source.orientations == ([6] if turned else None)
    assert source.notes == ()


def test_annotations_of_an_image_without_a_stated_size(tmp_path):
    content = xml(("cat", (20, 30, 40, 60)), size=(0, 0))
    write_voc(tmp_path, {"a": content, "b": xml(CAT)}, {"train": ["a"], "val": ["b"]})
    np.testing.assert_allclose(_boxes(load_detection_source(tmp_path)), [[0.5, 0.5, 1, 1]])


def test_a_folder_without_annotations_says_what_is_expected(tmp_path):
    with pytest.raises(ValueError, match=r"must be in PASCAL VOC form .* a folder with no annot"):
        load_detection_source(tmp_path)


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path):
    write_voc(tmp_path, dict.fromkeys("abc", xml(CAT)), {"test": ["c"]})
    (tmp_path / "ImageSets/Main/train.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")
    source = load_detection_source(tmp_path, on_bad_image="raise")
    assert (source.num_examples, source.notes) == (2, ())


def test_a_list_may_name_the_files_of_the_images(tmp_path):
    lists = {"train": ["a.jpg", "b.JPG 1"], "test": ["c"]}
    write_voc(tmp_path, dict.fromkeys("abc", xml(CAT)), lists)
    assert load_detection_source(tmp_path, on_bad_image="raise").num_examples == 2


def test_the_first_missing_annotation_is_named_where_there_is_no_other(tmp_path):
    write_voc(tmp_path, dict.fromkeys("ab", xml(CAT)), {"train": ["x"], "test": ["b"]})
    with pytest.raises(
        ValueError, match=r"no annotated image: 1 annotations are missing: .*x\.xml"
    ):
        load_detection_source(tmp_path)


def test_an_annotation_of_an_unknown_encoding_is_left_out(tmp_path):
    wrong = '<?xml version="1.0" encoding="unicode"?>' + xml(CAT)
    write_voc(tmp_path, {"a": xml(CAT), "b": wrong}, {"train": ["a", "b"]})
    write_voc(tmp_path, {"c": xml(CAT)}, {"test": ["c"]})
    source = load_detection_source(tmp_path)
    assert source.num_examples == 1
    assert "1 annotations are left out" in source.notes[0]


@pytest.mark.parametrize("named", ["a.jpg", None])
def test_of_images_that_differ_in_their_ending_the_annotation_names_one(tmp_path, named):
    content = xml(CAT)
    if named:
        content = content.replace("<annotation>", f"<annotation><filename>{named}</filename>")
    write_voc(tmp_path, {"a": content, "b": xml(CAT)}, {"train": ["a"], "test": ["b"]})
    Image.new("L", (40, 60)).save(tmp_path / "JPEGImages" / "a.bmp")
    source = load_detection_source(tmp_path)
    if named:
        assert (source.paths[0][-5:], source.notes) == ("a.jpg", ())
    else:
        assert any("1 images are one of several of their name" in note for note in source.notes)


def test_lists_that_differ_in_punctuation_are_told_apart(tmp_path):
    lists = {"train": ["a", "d"], "val-1": ["b"], "val_1": ["c"]}
    write_voc(tmp_path, dict.fromkeys("abcd", xml(CAT)), lists)
    for name, image in (("val-1", "b.jpg"), ("val_1", "c.jpg")):
        source = load_detection_source(tmp_path, split="eval", eval_split=name)
        assert source.paths[0][-5:] == image
    with pytest.raises(ValueError, match=r"split 'val 1' .* is one of val-1 and val_1"):
        load_detection_source(tmp_path, split="eval", eval_split="val 1")
