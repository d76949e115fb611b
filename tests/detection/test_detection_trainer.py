import keras
import numpy as np
import pytest
import tensorflow as tf
from detection_squares import SIZE, make_detector, scenes
from programs import run_program
from tiny_detectors import tiny_detector

from keras_dsnet.detection import evaluate_detection
from keras_dsnet.detection.detection_trainer import DetectionTrainer
from keras_dsnet.detection.multibox import MultiboxLoss, count_matched, match_anchors
from keras_dsnet.training import L2SGD, recalibrate_batch_norm


def make_trainer(eagerly=False, rate=0.03, detector=None, **options):
    trainer = DetectionTrainer(detector or make_detector(), **options)
    trainer.compile(L2SGD(rate, weight_decay=5e-4), run_eagerly=eagerly)
    return trainer


def batches(count=64, size=16, seed=0):
    return tf.data.Dataset.from_tensor_slices(scenes(count, seed)).batch(size).repeat()


def values_of(variables):
    return [variable.numpy() for variable in variables]


@pytest.mark.long
@pytest.mark.parametrize("target", ["boxes", "ema"])
def test_small_training_finds_the_squares_at_every_width(target):
    trainer = make_trainer(num_random=1, target=target, ema_momentum=0.9)
    validation = scenes(32, 1)
    before = trainer.evaluate(*validation, verbose=0, return_dict=True)
    trainer.fit(batches(128, 32), steps_per_epoch=100, verbose=0)
    after = trainer.evaluate(*validation, verbose=0, return_dict=True)
    assert after["widest_loss"] < 0.5 * before["widest_loss"]
    assert after["slimmest_loss"] < 0.5 * before["slimmest_loss"]
    rows = evaluate_detection(trainer.model, [validation], metric="voc")
    # An untrained detector has a mean average precision below 0.05.
    assert all(row["map"] > 0.5 for row in rows), [row["map"] for row in rows]


@pytest.mark.slow
def test_eight_images_are_learned_by_heart():
    """A fault of matching, offsets, decoding or suppression would leave boxes unfound."""
    trainer = make_trainer(num_random=0)
    images = scenes(8)
    trainer.fit(tf.data.Dataset.from_tensors(images).repeat(), steps_per_epoch=40, verbose=0)
    recalibrate_batch_norm(trainer.model, tf.data.Dataset.from_tensors(images), steps=1)
    rows = evaluate_detection(trainer.model, [images], [0, 2], "voc")
    assert all(row["map"] > 0.95 for row in rows), [row["map"] for row in rows]


def test_step_is_the_sum_of_the_gradients_of_all_paths():
    """The layers before the gate run once, and the slices are summed: nothing may get lost."""
    trainer = make_trainer(eagerly=True, num_random=2)
    model, (images, target) = trainer.model, scenes(6)
    for variable in model.trainable_variables:
        # A fresh network hides mistakes: its attention is 1 and its offsets are 0.
        variable.assign(variable + np.random.default_rng(1).normal(0, 0.1, variable.shape))
    matches = match_anchors(target["boxes"], target["classes"], model.anchors)
    widths = [int(width) for width in trainer.draw_widths()[:, 0]]
    variables = trainer.optimized_variables
    expected = [np.zeros(variable.shape) for variable in variables]
    for width in (2, *widths, 0):
        with tf.GradientTape() as tape:
            losses = MultiboxLoss()(matches, model(images, path=width, training=True))
            loss = tf.add_n([tf.reduce_sum(part) for part in losses]) / count_matched(matches)
        gradients = tape.gradient(loss, [v.value for v in variables], unconnected_gradients="zero")
        expected = [a + b for a, b in zip(expected, gradients, strict=True)]
    received = []
    trainer.optimizer.apply_gradients = lambda pairs: received.extend(pairs)
    trainer.train_step((images, target))
    for (gradient, variable), wanted in zip(received, expected, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-3, atol=1e-4, err_msg=variable.path)


def test_detector_of_several_gates_trains():
    detector = tiny_detector("resnet")
    trainer = make_trainer(detector=detector, eagerly=True, num_random=1)
    before = values_of(trainer.optimized_variables)
    images = np.random.default_rng(0).normal(size=(2, *detector.input_shape[1:]))
    # Boxes that are anchors of all three maps, so that every head has something to learn.
    boxes = np.clip(np.asarray(detector.anchors)[[0, 100, 220, 240, 253, 255]], 0, 1)
    target = {"boxes": np.float32([boxes, boxes]), "classes": np.float32([[0, 1, 2] * 2] * 2)}
    logs = trainer.train_step((images.astype("float32"), target))
    assert np.isfinite(float(logs["loss"]))
    after = values_of(trainer.optimized_variables)
    assert all((old != new).any() for old, new in zip(before, after, strict=True))


def test_trainer_is_rebuilt_from_its_config():
    options = {
        "target": "ema",
        "num_random": 1,
        "negative_ratio": 2.0,
        "classification": "focal",
        "box_weight": 0.5,
        "ema_momentum": 0.9,
        "decay_norms_and_biases": True,
        "seed": 3,
    }
    config = make_trainer(**options).get_config()
    assert options.items() <= config.items()
    copy = DetectionTrainer.from_config(config)
    assert options.items() <= copy.get_config().items()
    assert copy.model.class_names == ("red", "green")


@pytest.mark.long
def test_slimming_heads_stay_as_they_are():
    trainer = make_trainer()
    gates = trainer.model.backbone.slimming_gates
    heads = [variable for gate in gates for variable in gate.slimming_variables]
    before = values_of(heads)
    trainer.fit(batches(), steps_per_epoch=2, verbose=0)
    for old, new in zip(before, values_of(heads), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.slow
def test_one_path_alone_is_trained_without_the_others():
    trainer = make_trainer(sandwich=False, label_path=1)
    logs = trainer.fit(batches(), steps_per_epoch=2, verbose=0).history
    assert "width_1_loss" in logs
    assert "slimmest_loss" not in logs
    norms = [x for x in trainer.model.supernet_layers if hasattr(x, "moving_mean")]
    statistics = norms[-1].moving_mean.numpy()
    assert statistics[1].any()
    assert not statistics[[0, 2]].any()


def test_images_without_boxes_teach_the_background():
    trainer = make_trainer(eagerly=True)
    images, _ = scenes(4)
    empty = {"boxes": np.full((4, 1, 4), -1.0), "classes": np.full((4, 1), -1)}
    logs = trainer.evaluate(images, empty, verbose=0, return_dict=True)
    assert np.isfinite(logs["loss"])
    assert logs["widest_box_loss"] == logs["matched"] == 0
    assert logs["widest_class_loss"] > 0


def test_the_names_of_the_metrics_are_those_of_what_an_evaluation_returns():
    trainer, data = make_trainer(eagerly=True, num_random=1), scenes(4)
    named = trainer.evaluate(*data, verbose=0, return_dict=True)
    values = trainer.evaluate(*data, verbose=0)
    assert dict(zip(trainer.metrics_names, values, strict=True)) == pytest.approx(named)
    history = trainer.fit(*data, validation_data=data, verbose=0).history
    assert {f"val_{name}" for name in named} <= set(history)


def test_sample_weight_of_0_leaves_an_image_out():
    trainer = make_trainer(eagerly=True)
    images, target = scenes(4)
    target = {key: np.repeat(value[:1], 4, axis=0) for key, value in target.items()}
    images = np.concatenate([images[:1]] * 2 + [images[1:3]])
    all_but_two = trainer.evaluate(
        images, target, sample_weight=np.array([1.0, 1.0, 0.0, 0.0]), verbose=0, return_dict=True
    )
    first = {key: value[:2] for key, value in target.items()}
    two = trainer.evaluate(images[:2], first, verbose=0, return_dict=True)
    # Twice as many anchors are matched.
    assert all_but_two["loss"] == pytest.approx(two["loss"] / 2, rel=1e-5)


@pytest.mark.long
def test_mixed_precision_trains():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        trainer = make_trainer()
    finally:
        keras.config.set_dtype_policy("float32")
    logs = trainer.fit(batches(), steps_per_epoch=2, verbose=0).history
    assert np.isfinite(logs["loss"]).all()
    assert all(variable.dtype == "float32" for variable in trainer.optimized_variables)


IMAGES, TARGET = scenes(4)
MISTAKES = {
    "no dict": (TARGET["boxes"], r"must be a dict of 'boxes'.*Received: a \w+Tensor of shape"),
    "no classes": ({"boxes": TARGET["boxes"]}, "Received: a dict with the keys"),
    "shapes": ({**TARGET, "classes": TARGET["classes"][:, :1]}, "classes of shape"),
    "class": ({**TARGET, "classes": TARGET["classes"] + 2}, "from 0 to 1.*Received: "),
    "half a class": ({**TARGET, "classes": TARGET["classes"] + 0.5}, "from 0 to 1.*Received: "),
    "pixels": ({**TARGET, "boxes": TARGET["boxes"] * SIZE}, "in or near the image"),
    "corners": ({**TARGET, "boxes": TARGET["boxes"][..., [2, 3, 0, 1]]}, "must have an area"),
    "nan": ({**TARGET, "boxes": TARGET["boxes"] * np.nan}, "must have an area"),
}


@pytest.fixture(scope="module", params=[True, False], ids=["eager", "traced"])
def refusing(request):
    """A trainer that no test changes."""
    return make_trainer(eagerly=request.param, num_random=0)


@pytest.mark.parametrize(("target", "message"), MISTAKES.values(), ids=MISTAKES)
def test_wrong_targets_are_refused_before_anything_changes(refusing, target, message):
    before = values_of(refusing.model.variables)
    with pytest.raises(ValueError, match=message):
        refusing.fit(tf.data.Dataset.from_tensors((IMAGES, target)), verbose=0)
    for old, new in zip(before, values_of(refusing.model.variables), strict=True):
        np.testing.assert_array_equal(old, new)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"`target` must be one of.*Received: target='ensemble'"):
        DetectionTrainer(make_detector(), target="ensemble")
    with pytest.raises(ValueError, match=r"`detector` must be a detector.*Received: a Sequential"):
        DetectionTrainer(keras.Sequential())
    with pytest.raises(ValueError, match="`class_weight` must be None"):
        make_trainer().fit(batches(), steps_per_epoch=1, class_weight={0: 2.0}, verbose=0)


REPLICAS = """
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from detection_squares import make_detector, scenes

from keras_dsnet.detection.detection_trainer import DetectionTrainer
from keras_dsnet.training import L2SGD, recalibrate_batch_norm


def train(strategy):
    with strategy.scope():
        trainer = DetectionTrainer(make_detector(synchronized=True), num_random=1)
        trainer.compile(L2SGD(0.05, weight_decay=0.0))
    batches = tf.data.Dataset.from_tensors(scenes(8)).repeat()
    logs = trainer.fit(batches, steps_per_epoch=2, shuffle=False, verbose=0).history
    return [variable.numpy() for variable in trainer.model.variables], logs["loss"][-1]


one, loss = train(tf.distribute.get_strategy())
two, other = train(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
print("difference", max(np.abs(a - b).max() for a, b in zip(one, two)))
print("losses", loss, other)
"""


@pytest.mark.long
def test_two_replicas_train_as_one(tmp_path):
    # The replicas have different numbers of matched anchors.
    program = tmp_path / "program.py"
    program.write_text(REPLICAS)
    done = run_program(program)
    assert done.returncode == 0, done.stderr
    values = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert float(values["difference"]) < 1e-4
    losses = [float(loss) for loss in values["losses"].split()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
