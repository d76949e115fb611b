import keras
import numpy as np
import pytest
from trainers import make_batch, make_network, make_trainer, values_of

from keras_dsnet.models import DynamicSlimmableNetwork
from keras_dsnet.runs import SaveNetwork
from keras_dsnet.training import GateTrainer

BATCH = make_batch()


def load(path):
    network = keras.models.load_model(path)
    assert type(network) is DynamicSlimmableNetwork
    return network


def test_the_teachers_weights_are_saved_and_training_goes_on_with_the_networks(tmp_path):
    trainer = make_trainer(num_random=0)
    plain = make_trainer(num_random=0)
    callbacks = [
        SaveNetwork(tmp_path / "sub" / "teacher-{epoch}.keras"),
        SaveNetwork(tmp_path / "own.keras", teacher=False),
    ]
    options = {"epochs": 2, "shuffle": False, "verbose": 0}
    trainer.fit(*BATCH, callbacks=callbacks, **options)
    plain.fit(*BATCH, **options)
    for variable, expected in zip(trainer.model.variables, plain.model.variables):
        np.testing.assert_array_equal(variable, expected)
    own = load(tmp_path / "own.keras")
    for variable, expected in zip(own.variables, trainer.model.variables):
        np.testing.assert_array_equal(variable, expected)
    trainer.load_teacher()
    teacher = load(tmp_path / "sub" / "teacher-2.keras")
    for variable, expected in zip(teacher.variables, trainer.model.variables):
        np.testing.assert_array_equal(variable, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.keras", "sub"]


def test_the_best_network_of_stage_2_is_kept_with_its_gates_trained(tmp_path):
    trainer = GateTrainer(make_network(), routes=(0, 2))
    trainer.compile("sgd", run_eagerly=True)
    best = SaveNetwork(tmp_path / "best.keras", monitor="accuracy", save_best_only=True)
    weights = SaveNetwork(tmp_path / "all.weights.h5", save_weights_only=True)
    trainer.fit(*BATCH, verbose=0, callbacks=[best, weights])
    head = values_of(trainer.optimized_variables)
    best.on_epoch_end(1, {"accuracy": -1.0})
    saved = load(tmp_path / "best.keras")
    assert saved.gates_trained
    assert saved.routes == (0, 2)
    loaded = GateTrainer(make_network(seed=1))
    loaded.model.load_weights(tmp_path / "all.weights.h5")
    for each in (GateTrainer(saved), loaded):
        for variable, expected in zip(each.optimized_variables, head):
            np.testing.assert_array_equal(variable, expected)


def test_a_save_that_fails_leaves_the_last_file_and_the_networks_weights(tmp_path, monkeypatch):
    trainer = make_trainer(sandwich=False)
    path = tmp_path / "best.keras"
    path.write_bytes(b"the last one")
    before = values_of(trainer.model.variables)
    trainer.teacher_variables[0].assign_add(trainer.teacher_variables[0] + 1)

    def fail(filepath):
        filepath.write_bytes(b"half of it")
        raise OSError("the disk is full")

    monkeypatch.setattr(trainer.model, "save", fail)
    save = SaveNetwork(path)
    save.set_model(trainer)
    with pytest.raises(OSError, match="full"):
        save.on_epoch_end(0, {})
    assert path.read_bytes() == b"the last one"
    assert [each.name for each in tmp_path.iterdir()] == ["best.keras"]
    for variable, value in zip(trainer.model.variables, before):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize(
    ("filepath", "options", "message"),
    [
        ("best.h5", {}, r"end in '\.keras'\. Received: 'best\.h5'"),
        ("best.keras", {"save_weights_only": True}, r"end in '\.weights\.h5'"),
        ("best.keras", {"mode": "best"}, "mode='best'"),
        ("best.keras", {"monitor": "share_0", "save_best_only": True}, "monitor='share_0'"),
    ],
)
def test_names_and_modes_that_cannot_be_are_refused(filepath, options, message):
    with pytest.raises(ValueError, match=message):
        SaveNetwork(filepath, **options)


def test_another_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"callback of SupernetTrainer .* Received: a Sequential"):
        SaveNetwork(tmp_path / "best.keras").set_model(keras.Sequential())
