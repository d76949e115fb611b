"""Checkpoints loaded into networks: names, averages, and tensors that do not fit."""

import collections

import numpy as np
import pytest

from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage
from keras_dsnet.utils import UserError
from keras_dsnet.weights import load_checkpoint, read_checkpoint
from keras_dsnet.weights.ds_mbnet import mobilenet_tensors

SPEC = MobileNetSpec(
    stem=(2, 3),
    stages=(
        MobileNetStage(1, 2, (4, 6)),
        MobileNetStage(2, 2, (4, 6, 8, 10, 12), gated=True),
        MobileNetStage(1, 2, (8, 10, 12, 14, 16)),
    ),
    attention="sigmoid",
)


def network(spec=SPEC, classes=3, **options):
    return DynamicSlimmableNetwork(
        spec, (32, 32, 3), classes, classifier_activation=None, **options
    )


def random_state(seed):
    generator = np.random.default_rng(seed)
    return collections.OrderedDict(
        (name, generator.uniform(0.5, 1.5, target.shape).astype("float32"))
        for name, target in mobilenet_tensors(network()).items()
    )


@pytest.fixture(scope="module")
def states():
    return random_state(0), random_state(1)


@pytest.fixture
def save(tmp_path, write_torch_file):
    def write(state, average=None, **options):
        content = {"epoch": 1, "state_dict": state}
        if average is not None:
            content["state_dict_ema"] = average
        return write_torch_file(tmp_path / "x.pth.tar", content, **options)

    return write


def assert_holds(model, state):
    for name, target in mobilenet_tensors(model).items():
        if target.variable is not None:
            whole = np.full(target.variable.shape, np.nan, "float32")
            target.write(state[name], whole)
            filled = np.isfinite(whole)
            np.testing.assert_array_equal(np.array(target.variable)[filled], whole[filled])


@pytest.mark.parametrize(("ema", "index"), [(None, 1), (True, 1), (False, 0)])
def test_the_average_is_taken_where_there_is_one(save, states, ema, index):
    model = network()
    load_checkpoint(model, save(*states), ema=ema)
    assert_holds(model, states[index])
    assert model.routes == (0, 1, 2, 3)
    assert model.gates_trained


def test_without_an_average_the_weights_are_taken(save, states):
    model = network()
    load_checkpoint(model, save(states[0]))
    assert_holds(model, states[0])
    with pytest.raises(UserError, match="no 'state_dict_ema'"):
        load_checkpoint(model, save(states[0]), ema=True)


def test_widths_that_the_authors_do_not_score_have_score_zero(save, states):
    model = network()
    load_checkpoint(model, save(states[0]))
    scores = model.run_section(0, None, (0, 0), np.ones((2, 32, 32, 3), "float32"))[1]
    assert np.all(np.array(scores)[:, :4] != 0)
    np.testing.assert_array_equal(scores[:, 4:], 0)


def test_the_prefix_of_parallel_training_is_stripped(save, states):
    state = collections.OrderedDict((f"module.{key}", value) for key, value in states[0].items())
    assert read_checkpoint(save(state)).keys() == states[0].keys()


def test_a_file_of_the_weights_alone(tmp_path, write_torch_file, states):
    model = network()
    load_checkpoint(model, write_torch_file(tmp_path / "x.pth", states[0]))
    assert_holds(model, states[0])


def changed(state, **changes):
    state = collections.OrderedDict(state)
    for name, value in changes.items():
        name = name.replace("__", ".")
        if value is None:
            del state[name]
        else:
            state[name] = value
    return state


NAN = np.array([[np.nan] * 16] * 3, "float32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_stem__weight": None}, r"lacks the tensors 'conv_stem\.weight'$"),
        ({"fc__weight": np.zeros(2)}, r"has tensors that the network does not use: 'fc\.weight'$"),
        (
            {"conv_stem__weight": None, "a": np.zeros(2)},
            r"lacks .*'conv_stem\.weight' and has .*'a'$",
        ),
        ({"classifier__weight": NAN}, r"NaN or infinity in its tensor 'classifier\.weight'$"),
        (
            {"conv_stem__weight": np.zeros((5, 3, 3, 3), "float32")},
            r"of other widths: its tensor 'conv_stem\.weight' has the shape \[5, 3, 3, 3\] instead "
            r"of \[3, 3, 3, 3\]$",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(save, states, change, message):
    model = network()
    before = model.get_weights()
    with pytest.raises(UserError, match=message):
        load_checkpoint(model, save(changed(states[0], **change)))
    for value, expected in zip(model.get_weights(), before):
        np.testing.assert_array_equal(value, expected)
    assert not model.gates_trained


def test_another_architecture(tmp_path, write_torch_file):
    state = {f"layer{i}.0.conv1.weight": np.zeros((2, 2), "float32") for i in range(9)}
    path = write_torch_file(tmp_path / "resnet.pth", {"state_dict": state})
    with pytest.raises(UserError, match=r"another architecture .* 'layer0\.0\.conv1\.weight'"):
        load_checkpoint(network(), path)


def test_other_widths(save, states):
    stages = (*SPEC.stages[:2], MobileNetStage(1, 2, (8, 10, 12, 14, 18)))
    wider = network(MobileNetSpec(stem=(2, 3), stages=stages, attention="sigmoid"))
    with pytest.raises(UserError, match="of other widths"):
        load_checkpoint(wider, save(states[0]))


def test_a_gate_that_the_checkpoint_cannot_fill(save, states):
    own = network(MobileNetSpec(SPEC.stem, 2, SPEC.stages, "sigmoid", share_encoder=False))
    with pytest.raises(UserError, match=r"nothing for the variables .*b1_slimming"):
        load_checkpoint(own, save(states[0]))


@pytest.mark.parametrize("content", [{"epoch": 1}, {"state_dict": {"a": 1}}, {"state_dict": 3}])
def test_a_file_without_weights(tmp_path, write_torch_file, content):
    path = write_torch_file(tmp_path / "x.pth", content)
    with pytest.raises(UserError, match="no 'state_dict' of tensors"):
        load_checkpoint(network(), path)
