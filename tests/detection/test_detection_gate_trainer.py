import keras
import numpy as np
import pytest
import tensorflow as tf
from detection_squares import make_detector, scenes

from keras_dsnet.detection import DetectionGateTrainer
from keras_dsnet.detection.detection_gate_trainer import found_every_box

BOXES = np.array([[[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]], np.float32)
CLASSES = np.array([[1, 0]], np.int32)


def found(boxes=BOXES, scores=(0.9, 0.9), classes=CLASSES, labels=(1, 0), truth=BOXES):
    probabilities = np.zeros((1, 2, 3), np.float32)
    probabilities[0, [0, 1], labels] = scores
    return bool(found_every_box(boxes, probabilities, truth, classes, 0.3)[0])


def test_image_is_easy_if_every_box_is_found():
    assert found()
    assert found(boxes=BOXES[:, ::-1].copy(), labels=(0, 1))
    assert not found(scores=(0.9, 0.2))
    assert not found(labels=(1, 1))
    assert not found(boxes=BOXES * np.float32([1, 1, 0.6, 1]))


def test_padding_and_images_without_boxes_are_found():
    padded = np.concatenate([BOXES, [[[-1, -1, -1, -1]]]], axis=1).astype("float32")
    assert found(truth=padded, classes=np.array([[1, 0, -1]]))
    empty = np.zeros((1, 0, 4), "float32"), np.zeros((1, 0), "int32")
    assert found(scores=(0.0, 0.0), truth=empty[0], classes=empty[1])


def make_trainer(routes=(0, 2), rate=0.5, score_threshold=0.99, **options):
    """Of an untrained detector, none of whose probabilities reaches the threshold."""
    options["score_threshold"] = score_threshold
    trainer = DetectionGateTrainer(make_detector(), routes=routes, **options)
    trainer.compile(keras.optimizers.SGD(rate, momentum=0.9))
    return trainer


def batches():
    return tf.data.Dataset.from_tensor_slices(scenes(32)).batch(16).repeat()


def test_only_the_slimming_head_learns():
    trainer = make_trainer()
    detector = trainer.model
    slimming = {id(v) for gate in detector.slimming_gates for v in gate.slimming_variables}
    before = [variable.numpy() for variable in detector.variables]
    logs = trainer.fit(batches(), steps_per_epoch=2, verbose=0).history
    for old, variable in zip(before, detector.variables, strict=True):
        assert np.array_equal(old, variable.numpy()) == (id(variable) not in slimming)
    assert detector.gates_trained
    assert detector.routes == (0, 2)
    # An untrained detector finds no box, and one image of 32 has none.
    assert logs["easy"][0] == pytest.approx(1 / 32)
    assert logs["share_0"][0] + logs["share_2"][0] == pytest.approx(1)
    low, high = detector.madds(0), detector.madds(2)
    assert logs["madds"][0] == pytest.approx(low * logs["share_0"][0] + high * logs["share_2"][0])


@pytest.mark.parametrize(("weights", "width"), [((0, 1, 0), 0), ((0, 0, 1), 2)])
def test_each_loss_moves_the_gate(weights, width):
    """The complexity wants the slimmest; the boxes that no route finds want the widest."""
    trainer = make_trainer(loss_weights=weights, rate=5.0)
    logs = trainer.fit(batches(), steps_per_epoch=30, verbose=0).history
    assert np.isfinite(logs["loss"]).all()
    images, _ = scenes(32, 1)
    widths = trainer.model.route(images).numpy()
    assert (widths == width).mean() > 0.9


def test_difficult_boxes_need_not_be_found():
    trainer = make_trainer()
    images, target = scenes(16)
    batches = tf.data.Dataset.from_tensor_slices

    def easy(difficult):
        data = images, {**target, "difficult": difficult}
        logs = trainer.evaluate(batches(data).batch(8), verbose=0, return_dict=True)
        return logs["easy"]

    none = np.zeros(target["classes"].shape, bool)
    # An untrained detector finds no box, and one image has none.
    assert easy(none) == 1 / 16
    difficult = none.copy()
    difficult[:4] = True
    assert easy(difficult) == 5 / 16
    # One box of two that need not be found leaves the other.
    assert (target["classes"][:, 1] >= 0).any()
    difficult[:4, 1] = False
    two = (target["classes"][:4, 1] >= 0).sum()
    assert easy(difficult) == (5 - two) / 16


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"`score_threshold` must be.*Received: score_threshold=1"):
        make_trainer(score_threshold=1)
    with pytest.raises(ValueError, match="`routes` must be ascending widths from 0 to 2"):
        make_trainer(routes=(0, 3))
    for name, value in (("soft_targets", True), ("input_shape", (32, 32, 3))):
        with pytest.raises(ValueError, match=f"`{name}` is for gates of classifiers"):
            make_trainer(**{name: value})
    with pytest.raises(ValueError, match="`detector` must be a detector"):
        DetectionGateTrainer(keras.Sequential())
