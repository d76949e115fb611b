"""What data sets with boxes can be called, and those of TFDS."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from keras_dsnet.detection import (
    detection_evaluation_pipeline,
    load_detection_source,
    record_source,
)


@pytest.mark.parametrize(
    ("dataset", "arguments", "error", "message"),
    [
        ("./nowhere", {}, FileNotFoundError, "folder ./nowhere does not exist"),
        ("nowhere.json", {}, FileNotFoundError, "COCO file nowhere.json does not exist"),
        ("vok/2007", {}, FileNotFoundError, "folder vok/2007 does not exist"),
        (
            "voc/2007+2012",
            {},
            FileNotFoundError,
            "'voc/2007' is not prepared in .*run `tfds build voc/2007",
        ),
        ("cifar1", {}, ValueError, "unknown data set 'cifar1'"),
        ("digits", {}, ValueError, "^data set 'digits' has no boxes; .* 'voc/2007'"),
        ("", {}, ValueError, "a data set must have a name"),
        ("pets", {"split": "test"}, ValueError, "split must be 'train' or 'eval'"),
        ("pets", {"on_bad_image": "stop"}, ValueError, "on_bad_image must be"),
        ("pets", {"class_names": ["a", "a"]}, ValueError, "must be distinct names, one or more"),
        ("pets", {"class_names": "cat"}, ValueError, "must be distinct names, one or more"),
        ("pets", {"classes": 1}, ValueError, "has labels 0 to 1, outside classes=1: use classes=2"),
        ("pets", {"train_split": "trian"}, ValueError, "split 'trian' .* 'train' .9 images"),
        ("pets", {"train_split": "train[90"}, ValueError, "split .* is not valid"),
    ],
)
def test_a_mistake_is_named_in_one_line(
    voc_folder, monkeypatch, tmp_path, dataset, arguments, error, message
):
    monkeypatch.chdir(voc_folder.parent)
    with pytest.raises(error, match=message) as raised:
        load_detection_source(dataset, **{"data_dir": tmp_path, **arguments})
    assert "\n" not in str(raised.value)


def test_an_existing_folder_may_have_a_plus_in_its_name(voc_folder):
    joined = voc_folder.rename(voc_folder.parent / "cats+dogs")
    assert load_detection_source(joined).class_names == ("cat", "dog")


@pytest.mark.needs_shared
def test_voc_of_tfds(shared_voc):
    train = load_detection_source("voc/2007", shared_voc)
    assert (train.num_examples, train.split) == (450, "train+validation")
    test = load_detection_source("voc/2007", shared_voc, split="eval")
    assert (test.num_examples, test.split) == (150, "test")
    assert len(test.class_names) == 20
    part = load_detection_source("voc/2007", shared_voc, train_split="train[:25%]")
    assert part.num_examples == 100
    with pytest.raises(ValueError, match=r"split 'val' of data set 'voc/2007' is not valid"):
        load_detection_source("voc/2007", shared_voc, train_split="val")
    with pytest.raises(ValueError, match=r"`class_names` of 'voc/2007' must be those"):
        load_detection_source("voc/2007", shared_voc, class_names=["cat"])


@pytest.fixture
def both_years(shared_voc, tmp_path):
    """The sample as the data set of 2007 and, without its test split, as that of 2012."""
    for year in ("2007", "2012"):
        shutil.copytree(f"{shared_voc}/voc/2007/5.0.0", tmp_path / "voc" / year / "5.0.0")
    path = tmp_path / "voc" / "2012" / "5.0.0" / "dataset_info.json"
    path.chmod(0o644)
    path.parent.chmod(0o755)
    info = json.loads(path.read_text())
    info["configName"] = "2012"
    info["splits"] = [split for split in info["splits"] if split["name"] != "test"]
    path.write_text(json.dumps(info))
    return tmp_path


@pytest.mark.needs_shared
def test_validation_images_are_not_trained_on_where_they_are_evaluated(both_years):
    train = load_detection_source("voc/2012", both_years)
    test = load_detection_source("voc/2012", both_years, split="eval")
    assert (train.split, train.num_examples) == ("train", 400)
    assert (test.split, test.num_examples) == ("validation", 50)


@pytest.mark.needs_shared
def test_both_years_are_one_data_set(both_years):
    train = load_detection_source("voc/2007+2012", both_years)
    assert train.num_examples == 900
    test = load_detection_source("voc/2007+2012", both_years, split="eval")
    assert (test.num_examples, test.split) == (150, "test")
    positions = [int(index) for index, *_ in train.training_examples(0, 900).take(3)]
    assert positions == [0, 1, 2]
    stored = [stored.numpy() for _, stored, _ in train.training_examples(0, 900).take(900)]
    assert len(set(stored)) == 450
    assert all(stored.count(image) == 2 for image in set(stored))


@pytest.mark.needs_shared
def test_what_is_evaluated_is_not_trained_on_by_default(shared_voc, both_years):
    options = {"eval_split": "validation"}
    train = load_detection_source("voc/2007", shared_voc, **options)
    assert (train.num_examples, train.split) == (400, "train")
    assert load_detection_source("voc/2007+2012", both_years, **options).num_examples == 800
    with pytest.raises(ValueError, match=r"'train\[90%:\]' of 'voc/2007' is a part of 'train\+val"):
        load_detection_source("voc/2007", shared_voc, eval_split="train[90%:]")


@pytest.mark.needs_shared
def test_parts_without_boxes_or_images_are_named(shared_voc, both_years, monkeypatch):
    with_test = {"train_split": "train+validation+test"}
    joined = load_detection_source("voc/2007+2012", both_years, **with_test)
    assert joined.num_examples == 2 * 450 + 150
    assert joined.notes == ("'voc/2012' has no split 'test'",)
    with pytest.raises(ValueError, match=r"split 'train\[401:\]' of .*'voc/2007'"):
        load_detection_source("voc/2007+2012", both_years, train_split="train[401:]")
    # As the test images of 2012 are.
    monkeypatch.setattr(record_source, "_has_boxes", lambda builder, part: "test" not in part)
    source = load_detection_source("voc/2007", shared_voc, **with_test)
    assert source.num_examples == 450
    assert source.notes == ("split 'test' of 'voc/2007' has no boxes and is left out",)
    with pytest.raises(ValueError, match="split 'test' of 'voc/2007' has no image with boxes"):
        load_detection_source("voc/2007", shared_voc, split="eval", eval_split="test")


def test_areas_in_pixels_become_shares_of_the_image():
    image = tf.io.encode_jpeg(np.zeros((20, 50, 3), np.uint8))
    found = record_source._relative_areas(image, tf.constant([100, 250], tf.int64), tf.zeros(2))
    np.testing.assert_allclose(found, [0.1, 0.25])
    found = record_source._relative_areas(
        tf.io.encode_png(np.zeros((20, 50, 3), np.uint8)), tf.constant([100]), tf.constant([0.5])
    )
    assert found.numpy().tolist() == [0.5]


@pytest.mark.needs_shared
def test_difficult_objects_of_tfds_are_evaluated_as_such(shared_voc):
    source = load_detection_source("voc/2007", shared_voc, split="eval")
    counts = [int(objects["difficult"].numpy().sum()) for _, objects in source.ordered_examples()]
    assert len(counts) == 150
    assert sum(counts) > 0
    source = load_detection_source("voc/2007", shared_voc, "eval", eval_split="test[:8]")
    dataset = detection_evaluation_pipeline(
        source, image_size=32, batch_size=8, preprocess=lambda images: images
    )
    ((_, target),) = dataset
    assert int(target["difficult"].numpy().sum()) == sum(counts[:8])


def test_a_data_set_without_boxes_is_refused(shared_voc):
    with pytest.raises(ValueError, match=r"data set 'cifar10' must have an 'image' and 'objects'"):
        load_detection_source("cifar10", shared_voc)
