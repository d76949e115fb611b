import itertools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_dsnet.utils.batch_checks import (
    check_images,
    check_labels,
    check_weights,
    class_numbers,
    line_of_assertion,
)
from keras_dsnet.utils.batches import batch_count, image_batches, labelled_batches

SHAPE, CLASSES = (4, 4, 3), 10
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.normal(size=(6, *SHAPE)).astype("float32")
LABELS = np.array([0, 9, 3, 3, 1, 0])
ONE_HOT = np.eye(CLASSES)[LABELS]


def of_array(value):
    return tf.data.Dataset.from_tensor_slices(value)


class Items(keras.utils.PyDataset):
    def __init__(self, length=3):
        super().__init__()
        self.length = length

    @property
    def num_batches(self):
        return self.length

    def __getitem__(self, index):
        return IMAGES[2 * (index % 3) :][:2], LABELS[2 * (index % 3) :][:2]


def pairs():
    for start in (0, 2, 4):
        yield IMAGES[start : start + 2], LABELS[start : start + 2]


WHOLE = {
    "arrays": lambda: (IMAGES, LABELS),
    "tensors": lambda: (tf.constant(IMAGES), tf.constant(LABELS)),
    "weighted arrays": lambda: (IMAGES, LABELS, np.ones(6)),
    "list of batches": lambda: list(pairs()),
    "list of two": lambda: [(IMAGES[:3], LABELS[:3]), (IMAGES[3:], LABELS[3:])],
    "batches as lists": lambda: [[IMAGES, LABELS]],
    "triples": lambda: [(IMAGES, LABELS, np.ones(6))],
    "generator": pairs,
    "function": lambda: pairs,
    "tf.data": lambda: of_array((IMAGES, LABELS)).batch(4),
    "unknown length": lambda: of_array((IMAGES, LABELS)).filter(lambda *_: True).batch(2),
    "PyDataset": Items,
}


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE)
def test_every_kind_of_data_set_gives_all_its_images_and_labels(data):
    images, labels = zip(*labelled_batches(data(), SHAPE, CLASSES))
    np.testing.assert_array_equal(np.concatenate(images), IMAGES)
    np.testing.assert_array_equal(np.concatenate(labels), LABELS)
    assert {label.dtype for label in labels} == {tf.int32}
    np.testing.assert_array_equal(np.concatenate(list(image_batches(data(), SHAPE))), IMAGES)


ENDLESS = {
    "tf.data": lambda: of_array((IMAGES, LABELS)).batch(2).repeat(),
    "PyDataset": lambda: Items(None),
    "itertools": lambda: itertools.cycle(list(pairs())),
    "repeat": lambda: itertools.repeat(next(iter(pairs()))),
}


@pytest.mark.parametrize("data", ENDLESS.values(), ids=ENDLESS)
def test_what_never_ends_needs_a_number_of_batches(data):
    for read in (labelled_batches, lambda data, shape, _, **options: image_batches(data, shape)):
        with pytest.raises(ValueError, match=r"^`dataset` never ends: pass `num_batches`"):
            read(data(), SHAPE, CLASSES)
    assert len(list(labelled_batches(data(), SHAPE, CLASSES, num_batches=7))) == 7
    assert len(list(image_batches(data(), SHAPE, num_batches=2))) == 2


@pytest.mark.parametrize("count", [0, -1, 2.5, True, "3"])
def test_the_number_of_batches_is_positive(count):
    message = rf"`num_batches` must be .* Received: num_batches={count!r}"
    with pytest.raises(ValueError, match=message):
        labelled_batches(list(pairs()), SHAPE, CLASSES, num_batches=count)


def test_the_number_of_batches_is_known_where_it_can_be():
    assert batch_count(list(pairs())) == 3
    assert batch_count(list(pairs()), 2) == 2
    assert batch_count(of_array(LABELS).batch(4)) == 2
    assert batch_count(of_array(LABELS).batch(4), 5) == 2
    assert batch_count(of_array(LABELS).repeat(), 5) == 5
    assert batch_count(of_array(LABELS).filter(lambda _: True)) is None
    assert batch_count(pairs(), 5) is None, "it may end earlier"
    assert batch_count((np.zeros((65, *SHAPE)), np.zeros(65))) == 3
    assert batch_count(Items()) == 3


NUMBERS = ["int8", "uint8", "int32", "int64", "uint64", "float16", "float32", "float64"]


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)], ids=["flat", "column"])
def test_class_numbers_may_be_of_any_type(dtype, shape):
    labels = check_labels(LABELS.astype(dtype).reshape(shape), IMAGES, CLASSES, "it")
    np.testing.assert_array_equal(labels, LABELS)
    assert labels.dtype == tf.int32


@pytest.mark.parametrize("dtype", ["bool", "int32", "uint8", "float16", "float64"])
def test_probabilities_may_be_of_any_type(dtype):
    labels = check_labels(ONE_HOT.astype(dtype), IMAGES, CLASSES, "it")
    np.testing.assert_array_equal(labels, ONE_HOT)
    assert labels.dtype == tf.float32
    np.testing.assert_array_equal(class_numbers(labels), LABELS)


def test_one_class_and_two_classes_are_what_their_shape_says():
    column = np.zeros((6, 1))
    np.testing.assert_array_equal(check_labels(column, IMAGES, 1, "it"), np.zeros(6))
    with pytest.raises(ValueError, match=r"numbers 0 to 0, .* Received: label 1"):
        check_labels(column + 1, IMAGES, 1, "it")
    truth = LABELS > 2
    np.testing.assert_array_equal(check_labels(truth, IMAGES, 2, "it"), truth.astype(int))


def with_one(value, dtype="float64"):
    labels = LABELS.astype(dtype)
    labels[4] = value
    return labels


UNFIT = {
    "too high": (with_one(10), "label 10"),
    "negative": (with_one(-1, "int32"), "label -1"),
    "fraction": (with_one(0.5), r"label 0\.5"),
    "NaN": (with_one(np.nan), "label nan"),
    "infinite": (with_one(np.inf), "label inf"),
    "huge": (with_one(2**63, "uint64"), "label 9223372036854775808"),
    "no probabilities": (ONE_HOT * 0, "sum 0"),
    "two classes": (ONE_HOT * 2, "sum 2"),
    "scores": (ONE_HOT * 3 - 0.2, r"minimum -0\.2"),
    "other classes": (np.eye(11)[LABELS], r"labels of shape \(6, 11\)"),
    "too few": (LABELS[:5], r"labels of shape \(5,\) for images of shape \(6, 4, 4, 3\)"),
    "scalar": (np.int32(3), r"labels of shape \(\)"),
    "maps": (np.zeros((6, 4, 4)), r"labels of shape \(6, 4, 4\)"),
    "strings": (np.array(list("abcdef")), "labels of dtype string"),
    "complex": (LABELS.astype("complex64"), "labels of dtype complex64"),
    "dictionary": ({"boxes": LABELS}, "a dict with the keys"),
    "ragged": (tf.ragged.constant([[1], [2, 3]]), "a RaggedTensor"),
    "sparse": (tf.sparse.from_dense(ONE_HOT), "a SparseTensor"),
    "none": (None, "no labels"),
}


@pytest.mark.parametrize(("labels", "received"), UNFIT.values(), ids=UNFIT)
def test_labels_that_are_none_are_refused_in_one_line(labels, received):
    with pytest.raises(ValueError, match=rf"Received: .*{received}.* in it$") as error:
        check_labels(labels, IMAGES, CLASSES, "it")
    assert "\n" not in str(error.value)


def test_labels_in_a_type_that_cannot_tell_the_classes_apart_are_refused():
    with pytest.raises(ValueError, match="exact only up to 256, and there are 1000 classes"):
        check_labels(tf.cast(LABELS, tf.bfloat16), IMAGES, 1000, "it")
    assert check_labels(tf.cast(LABELS, tf.bfloat16), IMAGES, 200, "it").shape == (6,)


NAN = IMAGES.copy()
NAN[2, 1, 1, 0] = np.nan
PICTURES = {
    "size": (np.zeros((2, 8, 8, 3), "float32"), r"shape \(2, 8, 8, 3\)"),
    "channels": (np.zeros((2, 4, 4, 1), "float32"), r"shape \(2, 4, 4, 1\)"),
    "channels first": (np.zeros((2, 3, 4, 4), "float32"), r"shape \(2, 3, 4, 4\)"),
    "one image": (IMAGES[0], r"one image of shape \(4, 4, 3\)"),
    "pixels": (np.zeros((2, 4, 4, 3), "uint8"), "dtype uint8"),
    "none": (IMAGES[:0], "0 images"),
    "NaN": (NAN, "NaN or infinite"),
    "pair": ((IMAGES, IMAGES[0]), "a tuple of 2 elements"),
    "dictionary": ({"image": IMAGES}, r"a dict with the keys \['image'\]"),
    "strings": (np.full((1, 4, 4, 3), "a"), "dtype string"),
}


@pytest.mark.parametrize(("images", "received"), PICTURES.values(), ids=PICTURES)
def test_images_that_do_not_fit_are_refused_in_one_line(images, received):
    with pytest.raises(ValueError, match=rf"Received: .*{received}") as error:
        check_images(images, SHAPE, "it")
    assert "\n" not in str(error.value)
    for data in ([(images, LABELS)], iter([(images, LABELS)]), lambda: [(images, LABELS)]):
        with pytest.raises(ValueError, match=rf"Received: .*{received}.* batch 0 of `data`"):
            list(labelled_batches(data, SHAPE, CLASSES, name="data"))


def test_an_open_size_takes_any_and_raw_pixels_are_asked_for_by_their_type():
    pixels = np.full((2, 8, 6, 3), 200, "uint8")
    assert check_images(pixels / np.float16(255), (None, None, 3), "it").shape == pixels.shape
    np.testing.assert_array_equal(check_images(pixels, (8, 6, 3), "it", "uint8"), pixels)
    with pytest.raises(ValueError, match=r"raw uint8 pixels here\. Received: float32"):
        check_images(IMAGES, SHAPE, "it", "uint8")


def test_single_images_are_taken_where_they_are_asked_for():
    data = of_array((IMAGES, LABELS))
    assert [batch.shape[0] for batch in image_batches(data, SHAPE, single=True)] == [1] * 6
    with pytest.raises(ValueError, match=r"`dataset.batch\(32\)` makes of .* batch 0 of `d`$"):
        list(image_batches(data, SHAPE, name="d"))


@pytest.mark.parametrize(
    ("data", "received"),
    [
        (None, "None"),
        (5, "5"),
        ("folder", "'folder'"),
        ({"image": IMAGES}, "a dict"),
        (lambda: 5, "a function that returns 5"),
        ([{"image": IMAGES, "label": LABELS}], r"a dict with the keys \['image', 'label'\] as"),
        ([IMAGES], r"a ndarray of shape \(6, 4, 4, 3\) as batch 0"),
        ((IMAGES, LABELS[:4]), r"arrays of shapes \(6, 4, 4, 3\), \(4,\)"),
    ],
)
def test_what_is_no_labelled_data_set_is_refused(data, received):
    with pytest.raises(ValueError, match=f"Received: {received}") as error:
        list(labelled_batches(data, SHAPE, CLASSES))
    assert "\n" not in str(error.value)


def test_weights_are_a_finite_number_for_each_image():
    weights = check_weights(np.arange(6).reshape(6, 1), IMAGES, "it")
    np.testing.assert_array_equal(weights, np.arange(6))
    assert check_weights(None, IMAGES, "it") is None
    for wrong in (np.ones(5), np.ones((6, 2)), np.full(6, np.nan), np.full(6, "a"), {"a": 1}):
        with pytest.raises(ValueError, match=r"Received: .* in it$"):
            check_weights(wrong, IMAGES, "it")


def test_labels_of_open_shape_are_probabilities_of_the_same_classes():
    @tf.function(input_signature=[tf.TensorSpec(None, tf.int64)])
    def checked(labels):
        return check_labels(labels, tf.constant(IMAGES), CLASSES, "it")

    for labels in (LABELS, LABELS[:, None], ONE_HOT.astype("int64")):
        np.testing.assert_array_equal(checked(labels), ONE_HOT)
    for labels, received in (
        (np.array(3), r"labels of shape \(\) for 6 images"),
        (LABELS[:5], r"labels of shape \(5\) for 6 images"),
        (np.zeros((6, 3), "int64"), r"labels of shape \(6, 3\)"),
        (np.zeros((6, 10), "int64"), "sum 0"),
        (LABELS + 9, "label 18"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError) as error:
            checked(labels)
        assert re.search(f"Received: .*{received}", line_of_assertion(error.value))


def test_a_traced_function_counts_labels_and_images():
    @tf.function(
        input_signature=[tf.TensorSpec([None, *SHAPE]), tf.TensorSpec([None], tf.int64)],
    )
    def checked(images, labels):
        return check_labels(labels, images, CLASSES, "it")

    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        checked(IMAGES, LABELS[:1])
    assert line_of_assertion(error.value).endswith("Received: 1 labels and 6 images in it")


@tf.function(
    input_signature=[tf.TensorSpec([None, *SHAPE]), tf.TensorSpec([None], tf.int64)],
)
def used_in_graph(images, labels):
    images = check_images(images, SHAPE, "the batch")
    used.assign_add(tf.reduce_sum(images) * 0 + 1)
    return check_labels(labels, images, CLASSES, "the batch")


used = tf.Variable(0.0)


@pytest.mark.parametrize(
    ("images", "labels", "received"),
    [(IMAGES, with_one(10, "int64"), "label 10"), (NAN, LABELS, "NaN or infinite")],
)
def test_a_traced_function_finds_the_same_line_in_an_assertion(images, labels, received):
    np.testing.assert_array_equal(used_in_graph(IMAGES, LABELS), LABELS)
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        used_in_graph(images, labels)
    line = line_of_assertion(error.value)
    with pytest.raises(ValueError, match=received) as eager:
        check_labels(labels, check_images(images, SHAPE, "the batch"), CLASSES, "the batch")
    assert line == str(eager.value)
    assert line_of_assertion(ValueError("another")) is None
