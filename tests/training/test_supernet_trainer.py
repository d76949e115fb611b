"""Stage I against a plain version of its equations, and the effects of its arguments."""

import dataclasses
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from trainers import SPEC, make_batch, make_network, make_trainer, values_of

from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetStage
from keras_dsnet.training import L2SGD, SupernetTrainer


def softmax_cross_entropy(targets, logits):
    return -tf.reduce_mean(tf.reduce_sum(targets * tf.nn.log_softmax(logits), axis=1))


def plain_gradients(network, images, labels, random_width, target):
    """Returns the losses of Eqs. 5 and their gradients, with a teacher equal to the model."""
    teach = {k: tf.nn.softmax(network(images, path=k)) for k in ("widest", random_width)}
    variables = [v.value for v in network.trainable_variables if v.name != "w2"]
    with tf.GradientTape() as tape:
        widest = network(images, path="widest", training=True)
        soft = tf.nn.softmax(tf.stop_gradient(widest)) if target == "in_place" else teach["widest"]
        ensemble = (teach["widest"] + teach[random_width]) / 2 if target == "ensemble" else soft
        losses = [
            softmax_cross_entropy(tf.one_hot(labels, 5), widest),
            softmax_cross_entropy(soft, network(images, path=random_width, training=True)),
            softmax_cross_entropy(ensemble, network(images, path="slimmest", training=True)),
        ]
        total = tf.add_n(losses)
    return losses, tape.gradient(total, variables, unconnected_gradients="zero")


@pytest.mark.parametrize("target", ["ensemble", "ema", "in_place"])
def test_a_step_has_the_losses_and_gradients_of_the_papers_equations(target):
    images, labels = make_batch()
    network = make_network()
    expected_losses, expected = plain_gradients(make_network(), images, labels, 1, target)
    trainer = make_trainer(network, num_random=1, target=target)
    subnetworks = trainer._subnetworks(tf.constant([[1]]))
    losses, _, gradients = trainer._gradients(images, labels, subnetworks)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    by_path = dict(zip([v.path for v in trainer.optimized_variables], gradients))
    names = [v.path for v in network.trainable_variables if v.name != "w2"]
    assert sorted(names) == sorted(by_path)
    for name, gradient in zip(names, expected):
        scale = np.abs(gradient).max() + 1e-6
        np.testing.assert_allclose(by_path[name], gradient, atol=1e-4 * scale, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("sandwich", [True, False])
def test_smoothing_spreads_a_part_of_each_label_over_all_classes(smoothing, sandwich):
    images, labels = make_batch()
    network = make_network()
    logits = network(images, path="widest", training=True).numpy().astype("float64")
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets = np.full((12, 5), smoothing / 5)
    targets[np.arange(12), labels] += 1 - smoothing
    expected = -np.mean(np.sum(targets * logs, axis=1))
    options = {"sandwich": sandwich, "label_smoothing": smoothing, "target": "in_place"}
    for given in (labels, tf.one_hot(labels, 5)):
        trainer = make_trainer(make_network(), **options)
        losses, *_ = trainer._gradients(images, given, trainer._subnetworks(tf.constant([[1]])))
        assert float(losses[0]) == pytest.approx(expected, rel=1e-5)


def test_statistics_move_once_for_every_subnetwork():
    images, labels = make_batch()
    network, plain = make_network(), make_network()
    trainer = make_trainer(network, num_random=1)
    trainer._gradients(images, labels, trainer._subnetworks(tf.constant([[1]])))
    for path in ("widest", 1, "slimmest"):
        plain(images, path=path, training=True)
    for moved, expected in zip(network.non_trainable_variables, plain.non_trainable_variables):
        np.testing.assert_allclose(moved, expected, atol=1e-5, err_msg=moved.path)


def test_teacher_is_the_moving_average_of_variables_and_statistics():
    images, labels = make_batch()
    trainer = make_trainer(ema_momentum=0.75, ema_warmup=False)
    before = values_of(trainer.teacher_variables)
    trainer.train_on_batch(images, labels)
    averaged = [v for v in trainer.model.variables if v.dtype == "float32"]
    for old, variable, average in zip(before, averaged, trainer.teacher_variables):
        expected = 0.75 * old + 0.25 * variable.numpy()
        np.testing.assert_allclose(average, expected, atol=1e-6, err_msg=variable.path)


def test_warm_up_lets_a_fresh_teacher_follow():
    images, labels = make_batch()
    trainer = make_trainer(ema_momentum=0.997)
    before = values_of(trainer.teacher_variables)
    trainer.train_on_batch(images, labels)
    averaged = [v for v in trainer.model.variables if v.dtype == "float32"]
    for old, variable, average in zip(before, averaged, trainer.teacher_variables):
        np.testing.assert_allclose(average, 0.1 * old + 0.9 * variable.numpy(), atol=1e-5)


def test_load_teacher_gives_the_model_the_averages():
    images, labels = make_batch()
    trainer = make_trainer()
    trainer.train_on_batch(images, labels)
    trainer.load_teacher()
    averaged = [v for v in trainer.model.variables if v.dtype == "float32"]
    for variable, average in zip(averaged, trainer.teacher_variables):
        np.testing.assert_array_equal(variable, average)


def test_training_lowers_the_loss_of_every_net_in_one_trace(monkeypatch):
    images, labels = make_batch(32)
    trainer = make_trainer(optimizer=L2SGD(0.05), eagerly=False)
    traces, step = [], trainer.train_step
    monkeypatch.setattr(trainer, "train_step", lambda data: traces.append(1) or step(data))
    dataset = tf.data.Dataset.from_tensors((images, labels)).repeat()
    fitted = trainer.fit(dataset, epochs=3, steps_per_epoch=10, shuffle=False, verbose=0)
    history = fitted.history
    for name in ("widest_loss", "slimmest_loss", "random_loss"):
        assert history[name][-1] < history[name][0], name
    assert len(traces) <= 2, "30 steps of random widths must not trace anew"


def test_random_widths_are_interior_and_a_function_of_seed_and_step():
    wide = dataclasses.replace(
        SPEC,
        stages=(
            SPEC.stages[0],
            MobileNetStage(1, 2, (4, 6, 8, 10, 12, 14), gated=True),
            MobileNetStage(1, 1, (4, 6, 8, 10, 12, 14)),
        ),
    )

    def draw(seed, step):
        network = DynamicSlimmableNetwork(wide, input_shape=(16, 16, 3), classes=5)
        trainer = make_trainer(network, num_random=50, seed=seed)
        trainer.optimizer.iterations.assign(step)
        return trainer.draw_widths().numpy()

    first = draw(seed=0, step=3)
    assert first.shape == (50, 1)
    assert set(first.ravel()) == {1, 2, 3, 4}
    np.testing.assert_array_equal(first, draw(seed=0, step=3))
    assert np.any(first != draw(seed=1, step=3))
    assert np.any(first != draw(seed=0, step=4))


def test_weight_decay_goes_through_the_momentum_and_spares_gates_norms_and_biases():
    network = make_network()
    trainer = make_trainer(network, L2SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.5))
    trainer.optimizer.build(trainer.optimized_variables)
    before = {v.path: v.numpy().copy() for v in trainer.optimized_variables}
    gradients = [tf.zeros(v.shape) for v in trainer.optimized_variables]
    for _ in range(2):
        trainer.optimizer.apply(gradients)
    for variable in trainer.optimized_variables:
        value, momentum = before[variable.path].astype("float64"), 0.0
        decayed = variable.name == "kernel"
        for _ in range(2):
            gradient = 0.5 * value * decayed
            momentum = 0.9 * momentum - 0.1 * gradient
            value = value + 0.9 * momentum - 0.1 * gradient
        np.testing.assert_allclose(variable, value, atol=1e-5, err_msg=variable.path)


def test_slimming_heads_do_not_move():
    images, labels = make_batch()
    trainer = make_trainer(optimizer=L2SGD(0.1, weight_decay=0.5))
    (gate,) = trainer.model.slimming_gates
    before = gate.w2.numpy().copy()
    trainer.train_on_batch(images, labels)
    np.testing.assert_array_equal(gate.w2, before)


def test_training_under_trained_gates_warns_that_they_become_stale():
    network, batch = make_network(), make_batch()
    trainer = make_trainer(network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.fit(*batch, verbose=0)
    network.gates_trained = True
    with pytest.warns(UserWarning, match="gates .* train them again"):
        trainer.fit(*batch, verbose=0)
    assert network.gates_trained


def test_the_wide_front_has_statistics_of_its_own():
    images, labels = make_batch()
    network = make_network()
    trainer = make_trainer(network, label_path="largest")
    norm = next(s.layer for s in network.sections[1] if s.kind == "norm")
    before = norm.moving_mean.numpy().copy()
    trainer.train_on_batch(images, labels)
    moved = np.abs(norm.moving_mean.numpy() - before).max(axis=1) > 0
    np.testing.assert_array_equal(moved, [True, True, False, True])


@pytest.mark.slow
def test_a_width_alone_is_trained_as_a_network_of_that_width():
    images, labels = make_batch()
    network = make_network()
    plain = network.subnetwork(1)
    plain.compile(
        keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    trainer = make_trainer(network, label_path=1, sandwich=False, eagerly=False)
    for _ in range(3):
        expected = plain.train_on_batch(images, labels)
        logs = trainer.train_on_batch(images, labels, return_dict=True)
    # Keras reports the mean of the steps so far, as the trainer does.
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-4)
    assert set(logs) == {"loss", "width_1_loss", "width_1_accuracy", "learning_rate"}
    outputs = network.run_sections(images, network.resolve_path(1), training=True)
    np.testing.assert_allclose(outputs, plain(images, training=True), atol=1e-4)
    trainer.load_teacher()
    assert np.all(np.isfinite(network(images, path=1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label_path", "sandwich"), [("widest", True), ("largest", True), (1, False)]
)
def test_validation_measures_the_ends_on_the_labels(label_path, sandwich):
    images, labels = make_batch(12)
    network = make_network()
    options = {"label_path": label_path, "sandwich": sandwich, "num_random": 0}
    trainer = make_trainer(network, L2SGD(0.0, weight_decay=0.0), **options)
    # The last batch has 2 images, and every image counts once.
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(5)
    before = values_of(network.variables)
    logs = trainer.evaluate(batches, verbose=0, return_dict=True)
    for variable, value in zip(network.variables, before):
        np.testing.assert_array_equal(variable, value)
    name = label_path if sandwich else "width_1"
    ends = {f"{name}_loss": (label_path, f"{name}_accuracy")}
    ends |= {"slimmest_label_loss": ("slimmest", "slimmest_accuracy")} if sandwich else {}
    for loss_name, (path, accuracy_name) in ends.items():
        logits = network(images, path=path)
        loss = softmax_cross_entropy(tf.one_hot(labels, 5), logits)
        assert float(logs[loss_name]) == pytest.approx(float(loss), rel=1e-5)
        accuracy = np.mean(np.argmax(logits, axis=1) == labels)
        assert float(logs[accuracy_name]) == pytest.approx(accuracy)
    total = sum(float(logs[loss_name]) for loss_name in ends)
    assert float(logs["loss"]) == pytest.approx(total, rel=1e-6)
    assert len(logs) == 1 + 2 * len(ends)
    fitted = trainer.fit(batches, validation_data=batches, shuffle=False, verbose=0)
    assert {f"val_{key}" for key in logs} <= set(fitted.history)
    assert not {"slimmest_label_loss", "slimmest_accuracy"} & set(fitted.history)


@pytest.mark.parametrize(
    ("name", "value"),
    [("target", "mean"), ("num_random", -1), ("temperature", 0.0), ("label_path", "slimmest")],
)
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        SupernetTrainer(make_network(), **{name: value})


@pytest.mark.slow
def test_mixed_float16_trains_with_loss_scaling():
    images, labels = make_batch()
    network = make_network(dtype="mixed_float16")
    optimizer = keras.optimizers.LossScaleOptimizer(L2SGD(0.05), initial_scale=1024.0)
    trainer = make_trainer(network, optimizer, eagerly=False)
    logs = [trainer.train_on_batch(images, labels, return_dict=True) for _ in range(8)]
    assert np.isfinite(logs[-1]["loss"])
    assert all(v.dtype == "float32" for v in network.variables)


def test_distillation_is_scaled_by_the_square_of_the_temperature_unless_asked_not_to():
    images, labels = make_batch()
    losses = {}
    for scaled in (True, False):
        trainer = make_trainer(temperature=4.0, scale_distillation=scaled)
        logs = trainer.train_on_batch(images, labels, return_dict=True)
        losses[scaled] = {name: float(logs[name]) for name in ("slimmest_loss", "random_loss")}
        copy = SupernetTrainer.from_config(trainer.get_config())
        assert copy.scale_distillation is scaled
    for name, loss in losses[False].items():
        assert losses[True][name] == pytest.approx(16 * loss, rel=1e-5)


@pytest.mark.parametrize("warmup", [True, False])
def test_the_teacher_begins_with_weights_that_are_loaded_after_it_is_made(warmup):
    trainer = make_trainer(ema_warmup=warmup)
    other = make_network(seed=1)
    trainer.model.set_weights(other.get_weights())
    trainer.optimizer.learning_rate = 0.0
    # An evaluation before does not count.
    trainer.evaluate(*make_batch(), verbose=0)
    trainer.fit(*make_batch(), verbose=0)
    trainer.load_teacher()
    kernel = next(v for v in trainer.model.trainable_variables if "classifier" in v.path)
    expected = next(v for v in other.trainable_variables if "classifier" in v.path)
    np.testing.assert_allclose(kernel, expected, atol=1e-6)


def test_the_teacher_begins_with_loaded_weights_in_a_single_batch_too():
    trainer = make_trainer(ema_warmup=False)
    trainer.model.set_weights(make_network(seed=1).get_weights())
    trainer.optimizer.learning_rate = 0.0
    weights = values_of(trainer.optimized_variables)
    for _ in range(2):
        trainer.train_on_batch(*make_batch())
    trainer.load_teacher()
    for before, after in zip(weights, trainer.optimized_variables):
        np.testing.assert_allclose(after, before, atol=1e-6)


@pytest.mark.slow
def test_the_teacher_of_a_saved_trainer_goes_on_with_another_optimizer(tmp_path):
    trainer = make_trainer(ema_warmup=False)
    trainer.fit(*make_batch(), epochs=2, verbose=0)
    teacher = values_of(trainer.teacher_variables)
    assert any(
        np.abs(a - v).max() > 1e-3 for a, v in zip(teacher, values_of(trainer._average.variables))
    )
    trainer.save(tmp_path / "trainer.keras")
    loaded = keras.models.load_model(tmp_path / "trainer.keras")
    loaded.compile(L2SGD(0.0, weight_decay=0.0))
    loaded._average._momentum = 1.0
    loaded.fit(*make_batch(), verbose=0)
    for before, after in zip(teacher, loaded.teacher_variables):
        np.testing.assert_allclose(after, before, atol=1e-6)


def test_adafactor_is_refused():
    trainer = SupernetTrainer(make_network())
    with pytest.raises(ValueError, match=r"must not be Adafactor.*optimizer='adafactor'$"):
        trainer.compile("adafactor")
