import keras
import numpy as np
import pytest
from detection_squares import SIZE, make_classifier, make_detector
from tiny_families import TINY_RESNET, tiny_network

from keras_dsnet.detection import FSSD, as_backbone
from keras_dsnet.detection.backbone import detector_with_dtype
from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec
from keras_dsnet.training import recalibrate_batch_norm


def randomised(network):
    generator = np.random.default_rng(0)
    for variable in network.variables:
        variable.assign(np.abs(generator.normal(1.0, 0.1, variable.shape)))
    return network


def test_backbone_has_the_weights_gates_and_routes_of_a_classifier():
    network = randomised(make_classifier())
    network.routes, network.gates_trained = (0, 2), True
    backbone = as_backbone(network, (SIZE, SIZE, 3))
    assert (backbone.include_top, backbone.routes, backbone.gates_trained) == (False, (0, 2), True)
    images = np.random.default_rng(1).normal(size=(2, SIZE, SIZE, 3)).astype("float32")
    wanted = network.features(images, path=1)
    for level, features in backbone.features(images, path=1).items():
        np.testing.assert_array_equal(features, wanted[level])
    # The classifier is not changed by what is done to the backbone.
    backbone.supernet_layers[0].set_weights([0 * w for w in backbone.supernet_layers[0].weights])
    assert np.abs(network.supernet_layers[0].get_weights()[0]).min() > 0


def test_backbone_of_small_images_gets_the_strides_of_large_ones():
    spec = MobileNetSpec().scaled(alpha=0.25, strides=(1, 1, 2, 1, 2, 2))
    network = DynamicSlimmableNetwork(spec, input_shape=(32, 32, 3), classes=10)
    backbone = as_backbone(network, (64, 64, 3))
    assert backbone.spec.strides == MobileNetSpec().strides
    assert backbone.input_shape == (None, 64, 64, 3)
    assert as_backbone(network, (64, 64, 3), output_stride=16).spec.strides == (1, 1, 2, 2, 2, 2)
    strides = (2, 1, 2, 1, 2, 2)
    assert as_backbone(network, (64, 64, 3), strides).spec.strides == strides


def test_backbone_of_small_images_gets_the_pooling_of_large_ones():
    network = tiny_network(TINY_RESNET.scaled(strides=(1,) * len(TINY_RESNET.strides)))
    backbone = as_backbone(network, (64, 64, 3), strides=TINY_RESNET.strides)
    ours = {layer.name: layer for layer in backbone.supernet_layers}
    theirs = {layer.name: layer for layer in network.supernet_layers}
    assert set(ours) - set(theirs) == {"stem_pool"}
    for name, layer in theirs.items():
        for new, old in zip(ours[name].get_weights() if name in ours else (), layer.get_weights()):
            np.testing.assert_array_equal(new, old)


def test_what_is_no_network_is_refused():
    with pytest.raises(ValueError, match="`model` must be a DynamicSlimmableNetwork"):
        as_backbone(keras.Sequential(), (SIZE, SIZE, 3))
    with pytest.raises(ValueError, match=r"`strides` must be.*Received: strides=\(1, 2\)"):
        as_backbone(make_classifier(), (SIZE, SIZE, 3), strides=(1, 2))


@pytest.mark.slow
def test_recalibration_gives_each_width_the_statistics_of_its_batches():
    backbone = as_backbone(randomised(make_classifier()), (SIZE, SIZE, 3))
    detector = FSSD(backbone, classes=2, channels=8, pyramid=(16,), scales=(0.3, 0.5))
    images = np.random.default_rng(1).normal(size=(16, SIZE, SIZE, 3)).astype("float32")
    before = {v.path: v.numpy() for v in detector.trainable_variables}
    assert recalibrate_batch_norm(detector, [images], verbose=False) == 1
    for width in range(3):
        found = detector(images, path=width)["scores"].numpy()
        path = detector.resolve_path(width)
        # Statistics move in this call, after those of the batch itself have been used.
        wanted = detector.run_sections(images, path, training=True)["scores"].numpy()
        # The moving variance is the unbiased one, which differs where a map has few positions.
        assert np.abs(found - wanted).mean() < 0.02 * np.abs(wanted).mean()
        recalibrate_batch_norm(detector, [images], verbose=False)
    for variable in detector.trainable_variables:
        np.testing.assert_array_equal(variable.numpy(), before[variable.path])


def test_a_detector_gets_another_dtype_policy():
    detector = make_detector()
    detector.routing, detector.routes = "confidence", (0, 2)
    assert detector_with_dtype(detector, "float32") is detector
    mixed = detector_with_dtype(detector, "mixed_bfloat16")
    policies = {each.dtype_policy.name for each in (mixed, mixed.backbone)}
    assert policies == {"mixed_bfloat16"}
    assert (mixed.routing, mixed.routes, mixed.class_names) == (
        "confidence",
        (0, 2),
        detector.class_names,
    )
    for old, new in zip(detector.get_weights(), mixed.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
