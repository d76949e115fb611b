"""Predictions in the names of the classes."""

import numpy as np
import pytest
import tensorflow as tf
from routed_networks import SHORT_SPEC

from keras_dsnet.models import DynamicSlimmableNetwork
from keras_dsnet.models.predictions import decode_predictions

NAMES = ("ant", "bee", "cat")
ROWS = np.array([[0.1, 0.2, 0.7], [0.5, 0.5, 0.0]])


def make_network(**options):
    return DynamicSlimmableNetwork(SHORT_SPEC, (16, 16, 3), **{"classes": 3, **options})


def test_the_most_probable_come_first_and_equal_ones_in_order():
    expected = [[("2", "cat", 0.7), ("1", "bee", 0.2)], [("0", "ant", 0.5), ("1", "bee", 0.5)]]
    assert decode_predictions(ROWS, top=2, class_names=NAMES) == expected
    assert decode_predictions(ROWS.tolist(), np.int64(2), list(NAMES)) == expected
    network = make_network(class_names=NAMES)
    assert network.decode_predictions(ROWS, top=2) == expected
    assert len(network.decode_predictions(ROWS)[0]) == 3
    ((_, name, _),) = decode_predictions(tf.cast(ROWS[:1], tf.bfloat16), 1, NAMES)[0]
    assert name == "cat"


def test_imagenets_names_are_for_1000_classes(monkeypatch):
    keras_calls = []
    monkeypatch.setattr(
        "keras.applications.mobilenet.decode_predictions",
        lambda rows, top: keras_calls.append((rows.shape, top)),
    )
    decode_predictions(np.eye(1000)[:1])
    make_network(classes=1000).decode_predictions(np.eye(1000)[:2], top=3)
    assert keras_calls == [((1, 1000), 5), ((2, 1000), 3)]
    named = decode_predictions(np.eye(1000)[:1], 1, [f"class {k}" for k in range(1000)])
    assert named == [[("0", "class 0", 1.0)]]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (np.eye(10), {}, "`class_names` are needed.*None for 10 classes"),
        (ROWS, {"class_names": ("a", "b")}, "each of the 3 classes. Received: 2 names"),
        (ROWS, {"class_names": "abc"}, "class_names='abc'"),
        (ROWS[0], {"class_names": NAMES}, r"\[batch, classes\].*\(3,\)"),
        (ROWS[None], {"class_names": NAMES}, r"\[batch, classes\].*\(1, 2, 3\)"),
        (ROWS * 9, {"class_names": NAMES}, "softmax.*from 0 to 6.3"),
        (ROWS - 0.5, {"class_names": NAMES}, "softmax.*from -0.5"),
        (ROWS * np.nan, {"class_names": NAMES}, "finite"),
        ((ROWS, ROWS[0]), {"class_names": NAMES}, "one array.*a tuple"),
        (ROWS.astype("int8"), {"class_names": NAMES}, "dequantise.*int8"),
        (ROWS, {"class_names": NAMES, "top": 0}, "top=0"),
        (ROWS, {"class_names": NAMES, "top": 1.5}, "top=1.5"),
    ],
)
def test_what_cannot_be_named_is_refused(rows, options, message):
    with pytest.raises(ValueError, match=message):
        decode_predictions(rows, **options)


def test_a_network_names_its_own_classes_only():
    with pytest.raises(ValueError, match="`class_names` are needed"):
        make_network().decode_predictions(ROWS)
    with pytest.raises(ValueError, match=r"network's 3 classes.*\(10, 10\)"):
        make_network(class_names=NAMES).decode_predictions(np.eye(10))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a", "b"), "Received: 2 names"),
        ("abc", "class_names='abc'"),
        ({"a", "b", "c"}, "in the order"),
        ({"a": 0, "b": 1, "c": 2}, "in the order"),
        (("a", "", "c"), "'' for class 1"),
        (("a", "b\n", "c"), "for class 1"),
        (("a", None, "c"), "sequence of str"),
        (3, "sequence of str"),
    ],
)
def test_class_names_that_are_none_are_refused(names, message):
    network = make_network(class_names=NAMES)
    with pytest.raises(ValueError, match=message):
        network.class_names = names
    assert network.class_names == NAMES


def test_class_names_may_be_numbers_and_arrays():
    network = make_network(class_names=range(3))
    assert network.class_names == ("0", "1", "2")
    network.class_names = np.array(NAMES)
    assert network.class_names == NAMES
    network.class_names = None
    assert network.class_names is None
