"""COCO json files: what is read, and what is said about mistakes."""

import json

import numpy as np
import pytest
from detection_data import coco_content, picture

from keras_dsnet.detection import load_detection_source


def _write(folder, content, name="labels.json"):
    folder.mkdir(exist_ok=True)
    for image in content["images"]:
        (folder / image["file_name"]).write_bytes(picture(image["id"]))
    (folder / name).write_text(json.dumps(content))
    return folder / name


def test_the_folder_of_each_split(coco_folder):
    train = load_detection_source(coco_folder)
    held_out = load_detection_source(coco_folder, split="eval")
    assert (train.num_examples, held_out.num_examples) == (6, 3)
    # By id, without the category above all others.
    assert train.class_names == held_out.class_names == ("sign", "light")
    assert train.class_counts == (5, 5)
    assert train.description.endswith("10 boxes, 1 images without a box")


def test_boxes_areas_and_crowds(coco_folder):
    source = load_detection_source(coco_folder)
    image = next(image for image in source.objects if len(image.boxes))
    expected = [[6 / 60, 4 / 40, 18 / 60, 14.5 / 40], [0.5, 0, 1, 1]]
    np.testing.assert_allclose(image.boxes, expected, rtol=1e-6)
    np.testing.assert_allclose(image.areas, [100 / 2400, 900 / 2400], rtol=1e-6)
    assert image.classes.tolist() == [0, 1]
    assert image.crowd.tolist() == [False, True]


def test_the_folders_of_the_challenge(tmp_path):
    for name, count in (("train2017", 4), ("val2017", 2)):
        content = coco_content(count)
        path = _write(tmp_path / name, content)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        path.rename(tmp_path / "annotations" / f"instances_{name}.json")
    assert load_detection_source(tmp_path).num_examples == 4
    assert load_detection_source(tmp_path, split="eval").num_examples == 2


def test_one_file_with_a_folder_of_images(tmp_path):
    path = _write(tmp_path / "photos", coco_content(20))
    path = path.rename(tmp_path / "labels.json")
    train = load_detection_source(path, data_dir=tmp_path / "photos")
    test = load_detection_source(path, data_dir=tmp_path / "photos", split="eval")
    full = load_detection_source(path, data_dir=tmp_path / "photos", train_split="full[:50%]")
    assert (train.num_examples, test.num_examples, full.num_examples) == (18, 2, 10)
    with pytest.raises(ValueError, match=r"holds none of the 20 images of .*labels\.json"):
        load_detection_source(path)
    with pytest.raises(FileNotFoundError, match="folder nowhere of the images does not exist"):
        load_detection_source(path, data_dir="nowhere")


def test_one_file_of_a_validation_split_is_evaluated(tmp_path):
    path = _write(tmp_path / "val2017", coco_content(8))
    (tmp_path / "annotations").mkdir()
    path.rename(tmp_path / "annotations" / "instances_val2017.json")
    assert load_detection_source(tmp_path, split="eval").num_examples == 8
    splits = {"train_split": "val2017[:50%]", "eval_split": "val2017[50%:]"}
    assert load_detection_source(tmp_path, **splits).num_examples == 4
    with pytest.raises(ValueError, match=r"a list of images for training, .* Received: val2017"):
        load_detection_source(tmp_path)


@pytest.mark.parametrize("split", ["train", "eval"])
def test_only_missing_images_raise(tmp_path, split):
    content = coco_content(20)
    # The boxes of an image that is listed twice are joined, and nothing is missing.
    content["images"].append({**content["images"][1], "id": 99})
    path = _write(tmp_path / "train2017", content)
    (tmp_path / "annotations").mkdir()
    path = path.rename(tmp_path / "annotations" / "instances_train2017.json")
    source = load_detection_source(tmp_path, split=split, on_bad_image="raise")
    assert any("1 images are listed more than once" in note for note in source.notes)
    (tmp_path / "train2017" / "2.jpg").unlink()
    assert any(
        note.startswith("1 images are missing: ") and note.endswith("; left out")
        for note in load_detection_source(tmp_path, split=split).notes
    )
    with pytest.raises(ValueError, match=r"1 images are missing: [^;]*2\.jpg$"):
        load_detection_source(tmp_path, split=split, on_bad_image="raise")


def test_a_missing_image_is_left_out_or_raises(tmp_path):
    path = _write(tmp_path, coco_content(5))
    (tmp_path / "2.jpg").unlink()
    source = load_detection_source(path, train_split="full")
    assert source.num_examples == 4
    assert "1 images are missing" in source.notes[0]
    with pytest.raises(ValueError, match=r"1 images are missing: .*2\.jpg"):
        load_detection_source(path, on_bad_image="raise")


def _without(key):
    return lambda content: content.pop(key)


def _set(part, **values):
    return lambda content: content[part][0].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("annotations"), "must have the lists images, annotations, categories. Received"),
        (_set("annotations", bbox=[1, 2, 3]), "cannot be read: annotation 1: not enough values"),
        (_set("annotations", bbox=[1, 2, 3, float("nan")]), "bbox must be four numbers"),
        (_set("annotations", image_id=99), "annotation 1: there is no image of id 99"),
        (_set("annotations", category_id=99), "annotation 1: there is no category of id 99"),
        (lambda c: c["images"][0].pop("id"), "cannot be read: 'id' is missing"),
        (_set("images", id=11), r"the image id 11 is given to 0\.jpg and 1\.jpg"),
        (lambda c: c["images"][0].pop("file_name"), "cannot be read: 'file_name' is missing"),
        (lambda c: c["categories"][1].pop("id"), "cannot be read: 'id' is missing"),
        (lambda c: c["categories"][1].pop("name"), "cannot be read: 'name' is missing"),
        (lambda c: c["annotations"][0].pop("category_id"), "'category_id' is missing"),
    ],
    ids=[
        *("list", "corner", "nan", "image", "category"),
        *("no image id", "image id twice", "no file", "no category id", "no name", "no category"),
    ],
)
def test_a_broken_file_is_named(tmp_path, change, message):
    path = _write(tmp_path, coco_content(3))
    content = coco_content(3)
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_detection_source(path)


def test_the_boxes_of_an_image_that_is_listed_twice_are_joined(tmp_path):
    content = coco_content(3)
    content["images"].append({**content["images"][1], "id": 99})
    content["annotations"].append({**content["annotations"][0], "image_id": 99})
    source = load_detection_source(_write(tmp_path, content), train_split="full")
    assert (source.num_examples, source.num_boxes) == (3, 5)
    assert "1 images are listed more than once" in source.notes[0]


def test_a_file_that_is_not_json(tmp_path):
    (tmp_path / "labels.json").write_text("{")
    with pytest.raises(ValueError, match=r"COCO file .*labels\.json is not JSON"):
        load_detection_source(tmp_path / "labels.json")


def test_an_unknown_class_of_another_split_raises(coco_folder):
    path = coco_folder / "valid" / "_annotations.coco.json"
    path.write_text(path.read_text().replace('"light"', '"lamp"'))
    with pytest.raises(ValueError, match="unknown class 'lamp': the classes are 'sign', 'light'"):
        load_detection_source(coco_folder, split="eval")


def test_an_area_that_is_not_stated_is_that_of_the_box(tmp_path):
    content = coco_content(3)
    content["annotations"][0]["area"] = None
    source = load_detection_source(_write(tmp_path, content), train_split="full")
    areas = sorted({float(area) for image in source.objects for area in image.areas})
    np.testing.assert_allclose(areas, np.array([100, 10.5 * 12, 900]) / 2400, rtol=1e-6)


def test_one_name_of_several_ids_is_one_class(tmp_path):
    content = coco_content(4)
    content["categories"].append({"id": 9, "name": "sign", "supercategory": "things"})
    content["annotations"][0]["category_id"] = 9
    source = load_detection_source(_write(tmp_path, content), train_split="full")
    assert source.class_names == ("sign", "light")
    assert source.class_counts == (3, 3)


def test_a_split_has_the_boxes_of_its_own_file(tmp_path):
    """The file of the training split lists the images of the test split too, without boxes."""
    everything, part = coco_content(6), coco_content(6)
    _write(tmp_path / "images", everything)
    part["images"], part["annotations"] = part["images"][3:], part["annotations"][4:]
    everything["annotations"] = everything["annotations"][:4]
    (tmp_path / "annotations").mkdir()
    for name, content in (("train", everything), ("test", part)):
        path = tmp_path / "annotations" / f"instances_{name}.json"
        path.write_text(json.dumps(content))
    assert load_detection_source(tmp_path, split="eval").class_counts == (3, 3)
    train = load_detection_source(tmp_path)
    assert (train.num_examples, train.class_counts) == (3, (2, 2))
    assert load_detection_source(tmp_path, train_split="train").class_counts == (2, 2)


def test_a_split_whose_images_are_absent_does_not_block_the_others(tmp_path):
    for name in ("train2017", "val2017"):
        _write(tmp_path / name, coco_content(8))
        (tmp_path / "annotations").mkdir(exist_ok=True)
        path = tmp_path / name / "labels.json"
        path.rename(tmp_path / "annotations" / f"instances_{name}.json")
    for image in (tmp_path / "train2017").glob("*.jpg"):
        image.unlink()
    splits = {"train_split": "val2017[:50%]", "eval_split": "val2017[50%:]"}
    for split in ("train", "eval"):
        assert load_detection_source(tmp_path, split=split, **splits).num_examples == 4
    with pytest.raises(ValueError, match=r"train2017 holds none of the 8 images of .*train2017"):
        load_detection_source(tmp_path)
