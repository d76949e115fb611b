"""The split folders and class folders of a data set, and layouts that are rejected."""

import pytest
import tensorflow as tf

from keras_dsnet.data import load_source

PIXEL = tf.io.encode_png(tf.fill((2, 2, 3), tf.constant(9, tf.uint8))).numpy()


def _write(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(PIXEL)


def _split(name, classes=("cat", "dog"), count=2):
    return [f"{name}/{label}/{index}.png" for label in classes for index in range(count)]


def _only_in(source, folder):
    return all(path.startswith(f"{folder}/") for path in source.paths)


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ("train", "val"),
        ("Train", "Val"),
        ("training", "validation"),
        ("TRAIN", "VALID"),
        ("train", "dev"),
        ("training_set", "validation_set"),
        ("train2017", "val2017"),
        ("trainset", "valset"),
        ("seg_train", "seg_test"),
        ("train", "Testing"),
        ("train", "eval"),
        ("trainData", "testData"),
        ("TrainImages", "ValImages"),
        ("traindata", "validimages"),
        ("imagesTrain", "imagesVal"),
    ],
)
def test_splits_are_known_by_their_usual_names(tmp_path, train, validation):
    _write(tmp_path, *_split(train, count=3), *_split(validation))
    source = load_source(tmp_path)
    assert source.num_examples == 6
    assert source.class_names == ("cat", "dog")
    assert _only_in(source, tmp_path / train)
    evaluated = load_source(tmp_path, split="eval")
    assert evaluated.num_examples == 4
    assert _only_in(evaluated, tmp_path / validation)
    assert evaluated.split == validation


def test_validation_images_are_evaluated_and_test_images_only_on_request(tmp_path):
    _write(tmp_path, *_split("train"), *_split("valid"), *_split("test", count=1))
    assert _only_in(load_source(tmp_path, split="eval"), tmp_path / "valid")
    requested = load_source(tmp_path, split="eval", eval_split="test")
    assert _only_in(requested, tmp_path / "test")
    for name in ("valid", "val", "validation[:50%]"):
        assert _only_in(load_source(tmp_path, split="eval", eval_split=name), tmp_path / "valid")


def test_a_training_folder_only_has_a_tenth_held_out_and_says_so(tmp_path):
    _write(tmp_path, *_split("train", count=20))
    source = load_source(tmp_path, split="eval")
    assert source.class_counts == (2, 2)
    (note,) = source.notes
    assert "4 of 40 images, a tenth of each class, are held out" in note


def test_a_training_folder_given_itself_says_that_its_neighbours_are_not_used(tmp_path):
    _write(tmp_path, *_split("train"), *_split("val"))
    source = load_source(tmp_path / "train", split="eval")
    assert _only_in(source, tmp_path / "train")
    assert any(f"folder {tmp_path}/val is not used" in note for note in source.notes)


def test_test_images_without_classes_are_left_out_with_a_note(tmp_path):
    _write(tmp_path, *_split("train"), *_split("val"), "test/1.png")
    assert any("test is not used" in note for note in load_source(tmp_path).notes)
    with pytest.raises(ValueError, match=r"split folder .*test must hold class folders"):
        load_source(tmp_path, split="eval", eval_split="test")


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["train/cat.0.png", "test/1.png"], "train must hold class folders"),
        ([*_split("train"), "test/1.png"], "test must hold class folders"),
        ([*_split("train"), "val/1.png", *_split("test")], "val must hold class folders"),
        ([*_split("train"), *_split("val"), *_split("valid")], "one folder of validation images"),
        ([*_split("train"), *_split("Train"), *_split("val")], "one folder of train images"),
        ([*_split("train"), *_split("test"), *_split("eval")], "one folder of test images"),
        (_split("test"), "training images in train/. Received: only 'test'"),
        ([*_split("val"), *_split("test")], "training images in train/"),
        ([*_split("train"), *_split("val", ("cat",))], "two class folders"),
        ([*_split("train"), *_split("val", ("cat", "cow"))], "val/cow has no counterpart"),
        ([*_split("train", ("cat", "cow", "dog")), *_split("val")], "train/cow has no counterpart"),
        ([*_split("train"), *_split("val", ("Cat", "Dog"))], "val/Cat has no counterpart"),
        ([*_split("train"), *_split("crossval")], "crossval holds classes of .*train"),
        ([*_split("train"), "pred/1.png"], "pred holds images, beside the split folder"),
        (["cat/1.png", "dog/1.png", "2.png"], "holds images beside its class folders"),
        (["cat/1.png", "dog/1.png", "test/2.png"], "training images in train/"),
        ([*_split("train"), "train/x.png", *_split("val")], "holds images beside its class"),
        (["1.png", "2.png"], "Received: none, but images"),
        (["cat/1.png", "cat/2.png"], "only 'cat'"),
        (
            [*_split("images/train"), *_split("images/val"), "labels/1.txt"],
            "did you mean .*/images",
        ),
        ([*_split("fold1"), *_split("fold2"), *_split("fold3")], "name them train, val and test"),
        ([*_split("cats_train"), *_split("cats_val")], "name them train, val and test"),
        (
            [*_split("asl_train"), "asl_test/1.png", "asl_test/2.png"],
            "'asl_test', 'asl_train' of .* are named almost like splits: name them train, val and",
        ),
        ([*_split("flowersTrain"), *_split("flowersVal")], "name them train, val and test"),
        (_split("flowers"), "only 'flowers'; did you mean .*/flowers"),
        ([*_split("flowers/train"), *_split("flowers/val")], "did you mean .*/flowers"),
        ([*_split("images"), "labels/a.txt"], "did you mean .*/images"),
        ([*_split("cat", ("train", "val")), *_split("dog", ("train", "val"))], "expected .*train"),
    ],
    ids=str,
)
def test_what_is_ambiguous_is_refused_in_one_line(tmp_path, paths, message):
    _write(tmp_path, *paths)
    for split in ("train", "eval"):
        with pytest.raises(ValueError, match=message) as caught:
            load_source(tmp_path, split=split)
        assert "\n" not in str(caught.value)


def test_classes_may_hold_folders_of_the_same_names(tmp_path):
    _write(tmp_path, *_split("healthy", ("apple", "grape")), *_split("sick", ("apple", "grape")))
    source = load_source(tmp_path)
    assert source.class_names == ("healthy", "sick")
    said = (
        "classes are the folders 'healthy', 'sick', not the folders inside each of them: 'apple', "
    )
    assert any(note.startswith(said) for note in source.notes)


def test_classes_may_be_called_by_two_words_of_which_one_is_a_split(tmp_path):
    names = ("test_tube", "train_station", "validated")
    _write(tmp_path, *(f"{name}/{i}.png" for name in names for i in (0, 1)))
    assert load_source(tmp_path).class_names == names


def test_folders_that_are_no_splits_are_noted(tmp_path):
    _write(tmp_path, *_split("train"), *_split("val"), "more/1.png", *_split("extra", ("a", "b")))
    assert [note.split()[1] for note in load_source(tmp_path).notes] == [
        str(tmp_path / "extra"),
        str(tmp_path / "more"),
    ]


def test_archives_that_unpack_one_folder_deeper(tmp_path):
    _write(tmp_path, *_split("seg_train/seg_train"), *_split("seg_test/seg_test"), "seg_pred/1.png")
    assert load_source(tmp_path).class_names == ("cat", "dog")
    assert load_source(tmp_path, split="eval").num_examples == 4


def test_a_class_may_be_called_train(tmp_path):
    _write(tmp_path, *(f"{name}/{i}.png" for name in ("bus", "car", "train") for i in (0, 1)))
    source = load_source(tmp_path)
    assert source.class_names == ("bus", "car", "train")
    assert any("used as a class" in note for note in source.notes)


def test_split_names_are_class_names_inside_a_split(tmp_path):
    classes = ("bus", "test", "train")
    _write(tmp_path, *_split("train", classes), *_split("val", classes))
    assert load_source(tmp_path).class_names == classes


def test_other_folders_beside_the_splits_do_no_harm(tmp_path):
    _write(tmp_path, *_split("train"), *_split("val"), ".git/cat/1.png", "__MACOSX/train/1.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "README.md").write_text("flowers")
    assert load_source(tmp_path).notes == ()


def test_numbered_classes_are_in_the_order_of_their_numbers(tmp_path):
    numbers = tuple(str(number) for number in range(11))
    _write(tmp_path, *_split("train", numbers), *_split("val", numbers))
    source = load_source(tmp_path)
    assert source.class_names == numbers
    assert any("order of their numbers" in note for note in source.notes)
    for path, label in zip(source.paths, source.labels, strict=True):
        assert f"/{label}/" in path


def test_other_classes_are_in_the_order_of_their_names(tmp_path):
    _write(tmp_path, *_split("train", ("b", "10", "2", "A")))
    assert load_source(tmp_path).class_names == ("10", "2", "A", "b")


def test_tiny_imagenet_takes_its_validation_labels_from_the_list(tmp_path):
    classes = ("n02", "n01")
    _write(tmp_path, *(f"train/{name}/images/{name}_{i}.png" for name in classes for i in (0, 1)))
    for name in classes:
        (tmp_path / "train" / name / f"{name}_boxes.txt").write_text("a\t0\t0\t1\t1\n")
    _write(tmp_path, *(f"val/images/val_{i}.png" for i in range(3)), "test/images/test_0.png")
    annotations = tmp_path / "val" / "val_annotations.txt"
    annotations.write_text("".join(f"val_{i}.png\tn0{1 + i % 2}\t0\t0\t1\t1\n" for i in range(3)))
    source = load_source(tmp_path)
    assert (source.num_examples, source.class_names) == (4, ("n01", "n02"))
    assert any("2 files with .txt" in note for note in source.notes)
    evaluated = load_source(tmp_path, split="eval")
    labels = dict(zip(evaluated.paths, evaluated.labels, strict=True))
    assert labels == {str(tmp_path / "val" / "images" / f"val_{i}.png"): i % 2 for i in range(3)}
    annotations.write_text("val_0.png\tn09\t0\t0\t1\t1\n")
    with pytest.raises(ValueError, match=r"line 1 of .*val_annotations.txt"):
        load_source(tmp_path, split="eval")


def test_tiny_imagenet_names_its_classes_by_the_list_of_words(tmp_path):
    classes = ("n01", "n02", "n03")
    _write(tmp_path, *(f"train/{name}/images/{name}_{i}.png" for name in classes for i in (0, 1)))
    _write(tmp_path, "val/images/val_0.png", "val/images/val_1.png")
    annotations = tmp_path / "val" / "val_annotations.txt"
    annotations.write_text("val_0.png\tn03\t0\t0\t1\t1\nval_1.png\tn01\t0\t0\t1\t1\n")
    words = tmp_path / "words.txt"
    words.write_text("n00\tentity\nn02\tcrane, bird\nn01\tgoldfish, Carassius\nn03\tcrane\n")
    source = load_source(tmp_path)
    assert source.class_names == ("goldfish", "crane, bird", "crane")
    assert f"classes have the names of {words}" in source.notes
    evaluated = load_source(tmp_path, split="eval")
    assert dict(zip(evaluated.paths, evaluated.labels, strict=True)) == {
        str(tmp_path / "val" / "images" / f"val_{i}.png"): label for i, label in ((0, 2), (1, 0))
    }
    for text, note in (
        ("n01\tfish\nn02\t\n", "it has no words for class folder 'n02'"),
        ("n01\tfish\nn02\tcrane\nn03\tcrane\n", "two class folders are 'crane'"),
    ):
        words.write_text(text)
        source = load_source(tmp_path)
        assert source.class_names == classes
        assert f"{words} is not used: {note}" in source.notes


def test_a_description_names_folder_split_and_classes_with_counts(tmp_path):
    _write(tmp_path, *_split("train", count=3), *_split("val"))
    assert load_source(tmp_path).description == (
        f"folder {tmp_path}, split 'train': 6 images, 2 classes: cat (3), dog (3)"
    )


def test_a_description_of_many_classes_is_short(tmp_path):
    classes = [f"class{number:03}" for number in range(100)]
    _write(tmp_path, *_split("train", classes), *_split("val", classes, 1))
    description = load_source(tmp_path, split="eval").description
    assert "100 classes: class000 (1), " in description
    assert description.endswith("..., class099 (1)")
    assert len(description) < 400
