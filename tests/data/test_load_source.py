"""Data sets opened by name or by folder."""

import json
import re

import numpy as np
import pytest

from keras_dsnet.data import load_source


def test_more_labels_than_classes_raise():
    with pytest.raises(ValueError, match="outside classes=9: use classes=10"):
        load_source("digits", classes=9)
    assert load_source("digits", classes=12).num_classes == 10


def test_an_unknown_name_suggests_close_ones():
    with pytest.raises(ValueError, match=r"did you mean .*'cifar10'") as caught:
        load_source("cifar11")
    assert "\n" not in str(caught.value)


def test_a_data_set_that_is_not_prepared_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="tfds build mnist --data_dir") as caught:
        load_source("mnist", str(tmp_path))
    assert "\n" not in str(caught.value)


def test_imagenet_says_that_its_files_are_fetched_by_hand(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"downloads/manual .*ILSVRC2012_img_train.tar"):
        load_source("imagenet2012", str(tmp_path))


def test_a_folder_that_tfds_prepared_is_named_with_its_data_set(tmp_path):
    for parts, config in ((("cats", "1.0.0"), None), (("voc", "2007", "5.0.0"), "2007")):
        folder = tmp_path.joinpath(*parts)
        folder.mkdir(parents=True)
        info = {"name": parts[0], "configName": config}
        (folder / "dataset_info.json").write_text(json.dumps(info))
    for folder, name in (
        ("cats", "cats"),
        ("cats/1.0.0", "cats"),
        ("voc", "voc/2007"),
        ("voc/2007", "voc/2007"),
    ):
        message = f"prepared by TFDS: use the data set '{name}' with the data_dir '{tmp_path}'"
        with pytest.raises(ValueError, match=re.escape(message)):
            load_source(tmp_path / folder)


def test_a_folder_named_as_the_digits_is_named_in_a_note(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_source("digits").notes == ()
    (tmp_path / "digits").mkdir()
    assert load_source("digits").notes == ("the folder of this name is 'digits/'",)


@pytest.mark.parametrize(
    "name",
    [
        "/no/such/folder",
        "./no_such_folder",
        "../no_such_folder",
        "flowers/",
        "photos/cats_dogs",
        "photos/2/cats",
        "~/no_such_folder",
        "~no_such_user/photos",
        "a.zip/photos",
    ],
)
def test_a_missing_folder_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=f"folder {name} does not exist: ") as caught:
        load_source(name)
    assert "\n" not in str(caught.value)


def test_a_plain_word_may_have_been_meant_as_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"no folder 'photos' in {tmp_path}") as caught:
        load_source("photos")
    assert "toto" not in str(caught.value)


@pytest.mark.parametrize("name", ["", " ", "https://example.com/photos.zip", "gs://bucket/photos"])
def test_what_is_neither_a_name_nor_a_folder_is_refused(name):
    with pytest.raises(ValueError, match=r"must have a name|is an address"):
        load_source(name)


def test_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match=f"folder {tmp_path}/photos must hold two class folders"):
        load_source("~/photos")


def test_a_folder_that_tfds_prepared_is_not_one_of_class_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    (tmp_path / "mnist" / "3.0.1" / "dataset_info.json").write_text('{"name": "mnist"}')
    with pytest.raises(FileNotFoundError, match="tfds build mnist"):
        load_source("mnist", str(tmp_path / "elsewhere"))


def test_a_file_is_not_a_data_set(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="is a file"):
        load_source(tmp_path / "a.jpg")


@pytest.mark.slow
@pytest.mark.needs_shared
def test_cifar10_has_its_official_sizes_and_classes(shared_tfds):
    source = load_source("cifar10", shared_tfds, "eval")
    assert source.num_examples == 10_000
    assert source.image_shape == (32, 32, 3)
    assert source.class_names[:2] == ("airplane", "automobile")
    assert source.mirrorable
    np.testing.assert_array_equal(np.bincount(source.labels), [1000] * 10)


@pytest.mark.needs_shared
def test_a_data_set_without_a_class_label_is_refused(shared_tfds):
    with pytest.raises(ValueError, match="class 'label'"):
        load_source("voc/2007", shared_tfds)
