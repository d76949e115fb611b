"""Every family runs along every path, masked, routed, saved and written out as stock layers."""

import dataclasses
import itertools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_families import TINY_EFFICIENTNET, TINY_RESNET, GatedStage, tiny_images, tiny_network

from keras_dsnet.models import EfficientNetSpec, EfficientNetStage, NetworkSpec, register_family
from keras_dsnet.models.costs import section_costs
from keras_dsnet.models.executors import MaskedExecutor
from keras_dsnet.models.spec import FAMILIES

SPECS = {"resnet": TINY_RESNET, "efficientnet": TINY_EFFICIENTNET}
# The uniform paths, and for several gates steps up and down between any two widths.
PATHS = {
    "resnet": [(0, 0, 0), (1, 1, 1), (2, 2, 2), (0, 2, 1), (2, 0, 2), (1, 0, 1)],
    "efficientnet": [(0,), (1,), (2,)],
}
CASES = [(family, path) for family, paths in PATHS.items() for path in paths]
IMAGES = tiny_images()


@pytest.fixture(scope="module")
def networks():
    return {family: tiny_network(spec) for family, spec in SPECS.items()}


@pytest.mark.parametrize(("family", "path"), CASES)
def test_masked_channels_equal_the_slice(networks, family, path):
    network = networks[family]
    count = len(IMAGES)
    executor = MaskedExecutor(
        network, (0, 1, 2), lambda gate, scores, index: tf.one_hot([path[index]] * count, 3)
    )
    outputs = network.run_sections(tf.constant(IMAGES), None, executor=executor)
    expected = network(IMAGES, path=path)
    np.testing.assert_allclose(outputs, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("activation", ["relu", "softplus"])
def test_an_activation_that_is_not_zero_at_zero_fills_no_masked_channel(activation):
    network = tiny_network(dataclasses.replace(TINY_RESNET, activation=activation))
    path = (0, 2, 1)
    executor = MaskedExecutor(
        network, (0, 1, 2), lambda gate, scores, index: tf.one_hot([path[index]] * 4, 3)
    )
    outputs = network.run_sections(tf.constant(IMAGES[:4]), None, executor=executor)
    expected = network(IMAGES[:4], path=path)
    np.testing.assert_allclose(outputs, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("family", "path"), [c for c in CASES if c[1] not in [(1,), (1, 1, 1)]])
def test_a_subnetwork_of_stock_layers_has_the_outputs_of_its_path(networks, family, path):
    network = networks[family]
    plain = network.subnetwork(path)
    expected = network(IMAGES, path=path)
    np.testing.assert_allclose(plain(IMAGES), expected, atol=1e-4 * np.abs(expected).max())
    assert all(type(layer).__module__.startswith("keras.src") for layer in plain.layers)


@pytest.mark.parametrize("family", SPECS)
def test_layers_of_a_subnetwork_have_the_same_names_every_time(networks, family):
    first, again = (
        [layer.name for layer in networks[family].subnetwork("slimmest").layers] for _ in range(2)
    )
    assert first == again
    assert any(name.endswith("_add") for name in first)


@pytest.mark.parametrize("family", SPECS)
def test_routed_images_have_the_outputs_of_their_path(networks, family):
    network = networks[family]
    network.replace_routes((0, 2))
    chosen = [tuple(map(int, path)) for path in network.route(IMAGES).numpy()]
    assert len(set(chosen)) >= 2, "gates that pick one path would test nothing"
    if network.num_gates > 1:
        pairs = {pair for path in chosen for pair in itertools.pairwise(path)}
        assert len(pairs) >= 3, "a batch must be split again behind a gate"
    expected = [network(IMAGES[i : i + 1], path=path)[0] for i, path in enumerate(chosen)]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(network(IMAGES), expected, atol=1e-4 * scale)
    predicted = network.predict(IMAGES, batch_size=7, verbose=0)
    np.testing.assert_allclose(predicted, expected, atol=1e-4 * scale)
    np.testing.assert_allclose(tf.function(network)(IMAGES), expected, atol=1e-4 * scale)


@pytest.mark.parametrize("family", SPECS)
def test_every_gate_changes_the_outputs(networks, family):
    network = networks[family]
    slimmest = (0,) * network.num_gates
    for gate in range(network.num_gates):
        path = (*slimmest[:gate], 1, *slimmest[gate + 1 :])
        difference = network(IMAGES, path=path) - network(IMAGES, path=slimmest)
        assert np.abs(difference).max() > 0.01


@pytest.mark.parametrize("family", SPECS)
def test_saving_brings_back_outputs_routes_and_gates(networks, family, tmp_path):
    network = networks[family]
    network.replace_routes((0, 2))
    network.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert (loaded.spec, loaded.routes, loaded.gates_trained) == (network.spec, (0, 2), True)
    for value, expected in zip(loaded.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(loaded(IMAGES, path=1), network(IMAGES, path=1))


@register_family
@dataclasses.dataclass(frozen=True)
class _NormOfTheShortcutSpec(NetworkSpec):
    """A residual block whose shortcut ends with a norm, and whose branch does not."""

    stem: tuple = (16,)
    stem_strides: int = 2
    stages: tuple = (GatedStage(1, (16, 32, 48)),)
    activation: str = "relu"
    stage_class = GatedStage

    def features(self, build, input_channels):
        (stage,) = self.stages
        steps = [
            build.conv("stem", (input_channels,), self.stem, 3, self.stem_strides),
            build.group_norm("stem_norm", self.stem, self.activation),
            build.gate("gate", self.stem, slimming=True),
        ]
        branch = [build.conv("conv", self.stem, stage.channels, 3, stage.strides)]
        shortcut = [
            build.conv("shortcut", self.stem, stage.channels, 1, stage.strides),
            build.group_norm("shortcut_norm", stage.channels),
        ]
        return [*steps, build.residual(branch, shortcut, self.activation)], stage.channels


def test_a_norm_at_the_end_of_a_shortcut_is_masked_too():
    network = tiny_network(_NormOfTheShortcutSpec())
    count = len(IMAGES)
    executor = MaskedExecutor(network, (0, 1, 2), lambda *_: tf.one_hot([0] * count, 3))
    outputs = network.run_sections(tf.constant(IMAGES), None, executor=executor)
    np.testing.assert_allclose(outputs, network(IMAGES, path=0), atol=1e-4)


def test_ratios_are_those_of_a_stage_that_has_all_widths():
    first, gated, last = (
        EfficientNetStage(1, 1, (8,)),
        EfficientNetStage(1, 2, (16, 24, 32), gated=True),
        EfficientNetStage(1, 1, (40,)),
    )
    spec = EfficientNetSpec(stages=(first, gated, last))
    np.testing.assert_allclose(spec.ratios, (0.85, 1.275, 1.7))
    single = dataclasses.replace(gated, channels=(32,))
    assert EfficientNetSpec(stages=(first, single, last)).ratios == (1.0,)


@pytest.mark.parametrize("family", SPECS)
def test_sections_costs_add_up_to_the_madds_of_every_path(networks, family):
    network = networks[family]
    routes = (0, 2)
    front, tables = section_costs(network, routes)
    for path in itertools.product(range(2), repeat=network.num_gates):
        pairs = zip((0, *path), path)
        total = front + sum(int(table[pair]) for table, pair in zip(tables, pairs))
        assert total == network.madds(tuple(routes[index] for index in path))


@pytest.mark.parametrize(("family", "path"), [c for c in CASES if c[1] in [(0, 2, 1), (2,)]])
def test_counted_parameters_are_those_of_the_subnetwork(networks, family, path):
    network = networks[family]
    variables = network.subnetwork(path).trainable_variables
    assert network.costs(path).parameters == sum(np.prod(v.shape) for v in variables)


@pytest.mark.parametrize("family", SPECS)
def test_scalar_heads_and_encoders_of_their_own(family):
    spec = dataclasses.replace(SPECS[family], slimming_head="scalar", share_encoder=False)
    network = tiny_network(spec, routes=(1, 2))
    widths = network.route(IMAGES).numpy()
    assert widths.shape == (24, network.num_gates)
    assert set(widths.ravel()) <= {1, 2}
    for gate in network.slimming_gates:
        np.testing.assert_allclose(gate.choice_ratios, (np.array(spec.ratios) / spec.ratios[-1]))


@pytest.mark.parametrize("family", SPECS)
@pytest.mark.parametrize("path", ["largest", 3, (0, 0), (0, 0, 0, 0), "wide"])
def test_a_path_that_is_not_there_is_named(networks, family, path):
    with pytest.raises(ValueError, match="int from 0 to 2") as caught:
        networks[family](IMAGES, path=path)
    assert "largest'." not in str(caught.value).partition("Received")[0]
    # One line, and not what Keras makes of an error inside of `call`.
    assert str(caught.value).endswith(f"Received: path={path!r}")


@pytest.mark.parametrize("family", SPECS)
def test_a_row_of_what_route_returns_is_a_path(networks, family):
    network = networks[family]
    chosen = network.route(IMAGES[:1])[0]
    expected = network(IMAGES[:1], path=tuple(map(int, chosen)))
    for path in (chosen, chosen.numpy(), list(chosen.numpy())):
        np.testing.assert_array_equal(network(IMAGES[:1], path=path), expected)
        assert network.madds(path) == network.madds(tuple(map(int, chosen)))
    for path in (np.full(network.num_gates, 3), tf.constant(7), (True,) * network.num_gates):
        with pytest.raises(ValueError, match="int from 0 to 2"):
            network(IMAGES[:1], path=path)


@pytest.mark.slow
@pytest.mark.parametrize("family", SPECS)
def test_the_global_image_format_changes_nothing(networks, family):
    keras.config.set_image_data_format("channels_first")
    try:
        network = tiny_network(SPECS[family])
        plain = network.subnetwork(1)
        np.testing.assert_array_equal(network(IMAGES, path=1), networks[family](IMAGES, path=1))
        np.testing.assert_allclose(plain(IMAGES), network(IMAGES, path=1), atol=1e-4)
    finally:
        keras.config.set_image_data_format("channels_last")


@pytest.mark.parametrize("family", SPECS)
def test_a_spec_survives_json(family):
    spec = SPECS[family]
    assert type(spec).from_dict(json.loads(json.dumps(dataclasses.asdict(spec)))) == spec


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((), "needs a gated stage"),
        (((8, 16), (8, 16, 24)), r"options, 2, .*stages\[1\]\.channels=\(8, 16, 24\)$"),
        (((8, 16, 24), (8, 16)), r"options, 2, .*stages\[0\]\.channels=\(8, 16, 24\)$"),
        (((8, 16), 8), r"stages\[1\]\.channels` must be a tuple of ints.*channels=8$"),
        (((8, 16), (8, 16.0)), r"must be a tuple of ints.*channels=\(8, 16\.0\)$"),
    ],
)
def test_stages_that_do_not_fit_together_are_named(stages, message):
    stages = tuple(type(TINY_RESNET.stages[0])(1, 1, channels) for channels in stages)
    with pytest.raises(ValueError, match=f"^ResNetSpec.*{message}"):
        tiny_network(dataclasses.replace(TINY_RESNET, stages=stages))


def test_a_family_needs_the_gates_that_its_stages_say():
    @dataclasses.dataclass(frozen=True)
    class Hidden(type(TINY_RESNET)):
        def features(self, build, input_channels):
            steps, channels = super().features(build, input_channels)
            return [build.residual(steps[3:4]), *steps[4:]], channels

    with pytest.raises(ValueError, match=r"3 gated stages.*outside of residual.*Received: 2"):
        tiny_network(Hidden(stem=TINY_RESNET.stem, stages=TINY_RESNET.stages))
    with pytest.raises(NotImplementedError, match="NetworkSpec needs a method `features`"):
        tiny_network(NetworkSpec((8,), 1, TINY_RESNET.stages))


@pytest.mark.parametrize(
    ("behind", "received"),
    [
        (lambda build, block: [build.depthwise("extra", (8,), 3, 1), *block], "'depthwise'"),
        (lambda build, block: [build.residual(block[0].branch)], "'residual'"),
        (lambda build, block: [], "the end of the features"),
    ],
)
def test_a_slimming_gate_needs_a_convolution_behind_it(behind, received):
    @dataclasses.dataclass(frozen=True)
    class Changed(type(TINY_RESNET)):
        def features(self, build, input_channels):
            steps, channels = super().features(build, input_channels)
            last = max(i for i, step in enumerate(steps) if step.is_slimming_gate)
            return [*steps[: last + 1], *behind(build, steps[last + 1 :])], channels

    with pytest.raises(ValueError, match=rf"needs a convolution after it.*Received: {received}$"):
        tiny_network(Changed(stem=TINY_RESNET.stem, stages=TINY_RESNET.stages))


def test_an_activation_that_tensorflow_cannot_run_after_a_batch_norm_is_refused():
    with pytest.raises(ValueError, match=r"must not be 'mish'.*Received: activation='mish'$"):
        tiny_network(dataclasses.replace(TINY_EFFICIENTNET, activation="mish"))
    network = tiny_network(dataclasses.replace(TINY_RESNET, activation="mish"))
    assert np.all(np.isfinite(network(IMAGES[:2], path=0)))


def test_two_families_of_one_name_are_refused():
    assert register_family(type(TINY_RESNET)) is FAMILIES["ResNetSpec"]
    other = type("ResNetSpec", (NetworkSpec,), {})
    with pytest.raises(ValueError, match=r"keras_dsnet\.models\.resnet.*Received: ResNetSpec"):
        register_family(other)


def test_a_saved_network_of_an_unknown_family_is_named(networks):
    config = networks["resnet"].get_config()
    config["spec"]["family"] = "UnseenSpec"
    with pytest.raises(ValueError, match=r"import the module.*Received: 'UnseenSpec'"):
        type(networks["resnet"]).from_config(config)


def test_layers_that_do_not_add_up_are_named_by_the_cost():
    network = tiny_network(TINY_EFFICIENTNET)
    step = network.sections[1][-1]
    broken = dataclasses.replace(step, kind="residual", branch=network.sections[1][:2])
    with pytest.raises(ValueError, match="residual branch gives"):
        network.costs(0).run([broken], (8, 8, 4))
