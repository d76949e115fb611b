"""Folders of class folders opened as data sets."""

import itertools
import logging
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

from keras_dsnet.data import evaluation_pipeline, load_source, training_pipeline
from keras_dsnet.data.image_folder import HOLD_OUT_FRACTION


def _move_into(root, name, classes=("ant", "bee", "cat")):
    (root / name).mkdir()
    for label in classes:
        shutil.copytree(root / label, root / name / label)


def _train_and_val(image_folder):
    for name in ("train", "val"):
        _move_into(image_folder, name)
    for name in ("ant", "bee", "cat"):
        shutil.rmtree(image_folder / name)


def test_a_tenth_of_each_class_is_held_out_always_the_same(image_folder):
    train, held_out = load_source(image_folder), load_source(image_folder, split="eval")
    assert HOLD_OUT_FRACTION == 0.1
    np.testing.assert_array_equal(np.bincount(held_out.labels), [1, 1, 1])
    np.testing.assert_array_equal(np.bincount(train.labels), [9, 9, 9])
    assert not set(train.paths) & set(held_out.paths)
    assert held_out.paths == load_source(image_folder, split="eval").paths
    assert train.class_names == ("ant", "bee", "cat")


def test_labels_are_those_of_the_class_folder(image_folder):
    source = load_source(image_folder)
    for path, label in zip(source.paths, source.labels, strict=True):
        assert f"/{source.class_names[label]}/" in path


def test_sub_folders_are_the_splits(image_folder):
    _train_and_val(image_folder)
    (image_folder / "val" / "ant" / "0.jpg").unlink()
    train, val = load_source(image_folder), load_source(image_folder, split="eval")
    assert (train.num_examples, val.num_examples) == (30, 29)
    assert (train.split_size, val.split_size) == (30, 29)
    assert all("/val/" in path for path in val.paths)


def test_a_slice_of_a_folder_has_all_classes(image_folder):
    front = load_source(image_folder, train_split="train[:50%]")
    back = load_source(image_folder, split="eval", eval_split="train[50%:]")
    assert not set(front.paths) & set(back.paths)
    assert set(front.labels) == set(back.labels) == {0, 1, 2}
    # A tenth is held out.
    assert front.split_size == back.split_size == 27


def test_an_empty_class_folder_is_named(image_folder):
    (image_folder / "dog").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*/dog holds no image"):
        load_source(image_folder)


def test_a_single_class_folder_is_refused(image_folder):
    shutil.rmtree(image_folder / "ant")
    shutil.rmtree(image_folder / "bee")
    with pytest.raises(ValueError, match=r"two class folders of images or more.*only 'cat'"):
        load_source(image_folder)


def test_a_class_of_the_validation_images_must_be_one_of_the_training_images(image_folder):
    _train_and_val(image_folder)
    (image_folder / "val" / "ant").rename(image_folder / "val" / "wasp")
    with pytest.raises(ValueError, match="val/wasp has no counterpart"):
        load_source(image_folder, split="eval")


def test_more_class_folders_than_classes_raise(image_folder):
    with pytest.raises(ValueError, match="outside classes=2"):
        load_source(image_folder, classes=2)


def _break(path, how):
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"<html>", "cut": whole[: len(whole) // 2]}[how])


@pytest.mark.parametrize("how", ["empty", "text", "cut"])
@pytest.mark.parametrize("name", ["bee/2.jpg", "bee/3.png"])
def test_an_unreadable_image_is_named_skipped_and_counted(image_folder, caplog, how, name):
    whole = load_source(image_folder)
    path = next(path for path in whole.paths if path.endswith(name))
    _break(image_folder / name, how)
    with caplog.at_level(logging.WARNING):
        source = load_source(image_folder)
    assert source.num_examples == whole.num_examples - 1
    # Splits are sliced before files are left out.
    assert source.split_size == whole.num_examples
    assert path not in source.paths
    assert path in caplog.text
    assert f"skipped 1 of {whole.num_examples} images" in caplog.text
    with pytest.raises(ValueError, match=name):
        load_source(image_folder, on_bad_image="raise")


def test_a_class_may_lose_its_only_image_of_evaluation(image_folder):
    held_out = load_source(image_folder, split="eval")
    (first, *others) = [path for path in held_out.paths if "/bee/" in path]
    for path in (first, *others):
        _break(pathlib.Path(path), "cut")
    source = load_source(image_folder, split="eval")
    assert {path.split("/")[-2] for path in source.paths} == {"ant", "cat"}
    assert any("skipped" in note for note in source.notes)
    assert load_source(image_folder).class_names == source.class_names


def test_a_split_is_sliced_whatever_another_one_holds(image_folder):
    _train_and_val(image_folder)
    shutil.copytree(image_folder / "val", image_folder / "test")
    for path in (image_folder / "test" / "bee").iterdir():
        path.unlink()
    whole = load_source(image_folder).num_examples
    half = load_source(image_folder, train_split="train[:50%]").num_examples
    assert half == pytest.approx(whole / 2, abs=1)


@pytest.mark.parametrize("name", ["foo", "all", "validation", ""])
def test_a_split_that_is_not_there_is_one_line(image_folder, name):
    with pytest.raises(ValueError, match=rf"split '{name}' of .* is not valid: it has 'train', "):
        load_source(image_folder, split="eval", eval_split=f"{name}[:50%]")
    _train_and_val(image_folder)
    with pytest.raises(ValueError, match=r"is not valid: it has 'train', 'val'"):
        load_source(image_folder, split="eval", eval_split="foo[:50%]")


@pytest.mark.parametrize("kind", ["folder", "files"])
def test_links_that_would_put_images_into_two_splits_are_refused(image_folder, kind):
    _train_and_val(image_folder)
    place = image_folder / "val" / "ant"
    trained = image_folder / "train" / "ant"
    if kind == "folder":
        (place / "more").symlink_to(trained)
    else:
        first = sorted(trained.iterdir())[0]
        (place / f"linked{first.suffix}").symlink_to(first)
    assert load_source(image_folder).num_examples
    with pytest.raises(ValueError, match="splits must not share images"):
        load_source(image_folder, split="eval")


@pytest.mark.parametrize("how", ["empty", "text", "cut"])
def test_large_folders_are_judged_by_how_files_begin_and_end(image_folder, monkeypatch, how):
    monkeypatch.setattr("keras_dsnet.data.image_folder.FULL_CHECK_FILES", 0)
    whole = load_source(image_folder)
    assert whole.num_examples == 27
    _break(image_folder / "bee" / "2.jpg", how)
    assert load_source(image_folder).num_examples == 26


def test_a_folder_without_readable_images_is_refused(image_folder):
    for path in image_folder.rglob("*.*"):
        _break(path, "empty")
    with pytest.raises(ValueError, match="none of the 27 images"):
        load_source(image_folder)


def test_a_file_that_breaks_after_the_check_does_not_move_other_images(
    image_folder, to_float, caplog
):
    source = load_source(image_folder)
    settings = {"image_size": 16, "batch_size": 9, "seed": 1, "preprocess": to_float}
    before = list(training_pipeline(source, **settings).take(6).as_numpy_iterator())
    broken = source.paths[4]
    with open(broken, "wb") as file:  # noqa: PTH123
        file.write(b"\xff\xd8\xff broken")
    with caplog.at_level(logging.WARNING):
        after = list(training_pipeline(source, **settings).take(6).as_numpy_iterator())
    changed = 0
    for (images, labels), (new_images, new_labels) in zip(before, after, strict=True):
        np.testing.assert_array_equal(labels, new_labels)
        different = np.any(images != new_images, axis=(1, 2, 3))
        np.testing.assert_array_equal(new_images[different], 127.5)
        changed += different.sum()
    assert changed == 2
    assert broken in caplog.text

    caplog.clear()
    evaluated = evaluation_pipeline(source, image_size=16, batch_size=9, preprocess=to_float)
    assert sum(len(labels) for _, labels in evaluated) == 26
    assert broken in caplog.text


def test_a_file_that_breaks_after_the_check_is_fatal_if_asked(image_folder, to_float):
    source = load_source(image_folder, on_bad_image="raise")
    (image_folder / source.paths[4]).write_bytes(b"broken")
    evaluated = evaluation_pipeline(source, image_size=16, batch_size=9, preprocess=to_float)
    with pytest.raises(tf.errors.OpError, match=f"UserError: image {source.paths[4]} cannot"):
        list(evaluated)


def fails(*example):
    label = example[-1]
    with tf.control_dependencies([tf.debugging.Assert(label < 0, [label])]):
        return tf.zeros((16, 16, 3)), label


def replaces(label):
    return tf.zeros((16, 16, 3)), label


def test_a_broken_preparation_is_not_taken_for_a_broken_image(image_folder):
    source = load_source(image_folder)
    batches = source.map_training(fails, replaces, seed=0, batch_size=5)
    with pytest.raises(tf.errors.OpError, match="can be read, but preparing it failed"):
        list(batches.take(1))
    with pytest.raises(tf.errors.OpError, match="can be read, but preparing it failed"):
        list(source.map_evaluation(fails, batch_size=5))


def test_a_batch_without_a_readable_image_is_gray_and_evaluation_says_so(
    image_folder, to_float, caplog
):
    source = load_source(image_folder)
    for path in source.paths[:13]:
        pathlib.Path(path).write_bytes(b"broken")
    settings = {"image_size": 16, "preprocess": to_float}
    batches = training_pipeline(source, batch_size=1, seed=1, **settings).take(27)
    gray = [np.array_equal(image, np.full((1, 16, 16, 3), 127.5)) for image, _ in batches]
    assert sum(gray) == 13
    for path in source.paths:
        pathlib.Path(path).write_bytes(b"broken")
    with pytest.raises(tf.errors.OpError, match=r"none of the 27 images in .* can be read"):
        list(evaluation_pipeline(source, batch_size=9, **settings))


def test_training_ends_where_the_folder_of_an_image_is_gone(image_folder, to_float):
    source = load_source(image_folder)
    image_folder.rename(image_folder.with_name("unmounted"))
    batches = training_pipeline(source, image_size=16, batch_size=9, preprocess=to_float, seed=1)
    with pytest.raises(
        tf.errors.OpError, match=r"UserError: image .* is the disk of .* still there"
    ):
        next(iter(batches))


def test_training_ends_once_half_of_a_small_folder_cannot_be_read(image_folder, to_float):
    source = load_source(image_folder)
    for path in source.paths[::2]:
        pathlib.Path(path).write_bytes(b"broken")
    settings = {"image_size": 16, "batch_size": 9, "preprocess": to_float}
    batches = iter(training_pipeline(source, seed=1, **settings))
    with pytest.raises(
        tf.errors.OpError, match=r"UserError: 1\d of the 27 images .* any more, such"
    ):
        list(itertools.islice(batches, 20))


@pytest.mark.parametrize("broken", [[0], [26], [8, 9, 10], [25, 26]], ids=str)
def test_evaluation_names_every_image_that_it_leaves_out(image_folder, to_float, caplog, broken):
    source = load_source(image_folder)
    for index in broken:
        pathlib.Path(source.paths[index]).write_bytes(b"broken")
    with caplog.at_level(logging.WARNING):
        batches = evaluation_pipeline(source, image_size=16, batch_size=9, preprocess=to_float)
        labels = np.concatenate([labels for _, labels in batches])
    np.testing.assert_array_equal(labels, np.delete(source.labels, broken))
    for index in broken:
        assert caplog.text.count(f"image {source.paths[index]} cannot be read") == 1
    assert f"evaluation left out {len(broken)} of 27 images" in caplog.text
