"""Quantisation-aware training: the bridge to tf_keras, the int8 file, and what is refused."""

import collections
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from routed_networks import SIZE, small_network
from tiny_families import TINY_RESNET, tiny_network

from keras_dsnet.data import evaluation_pipeline, load_source, training_pipeline
from keras_dsnet.export import export_subnetwork, quantize_aware
from keras_dsnet.export.conversion import convert
from keras_dsnet.export.qat_model import legacy_model
from keras_dsnet.models import MobileNetSpec, MobileNetStage

CLASSES = 5
PATH = 1
BLOCKS = 2
SPEC = MobileNetSpec(
    stem=(4, 6),
    stages=(MobileNetStage(1, 2, (8, 12)), MobileNetStage(1, 2, (8, 16, 24), gated=True)),
    attention_ratio=0.5,
)


def make_batches(count=4, batch=8):
    generator = np.random.default_rng(0)
    return [
        (
            generator.normal(size=(batch, SIZE, SIZE, 3)).astype("float32"),
            generator.integers(0, CLASSES, batch),
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def network():
    return small_network(CLASSES, spec=SPEC)


@pytest.fixture(scope="module")
def trained(network, tmp_path_factory):
    """One run: the file's bytes and its name, and the network's weights before and after."""
    filename = tmp_path_factory.mktemp("qat") / "m.tflite"
    before = network.get_weights()
    content = quantize_aware(
        network, PATH, make_batches(), epochs=2, filename=filename, verbose=False
    )
    return content, filename, before, network.get_weights()


def run(content, images):
    runner = Interpreter(model_content=content).get_signature_runner("serving_default")
    return np.concatenate([runner(image=image[None])["output"] for image in images])


def operators(content):
    """Counts the file's operators by name and types of what they read."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    types = {value: name for name, value in vars(schema.TensorType).items()}
    (graph,) = model.subgraphs
    found = collections.Counter()
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex].builtinCode
        first = graph.tensors[operator.inputs[0]]
        found[names[code], types[first.type]] += 1
    return found


def plain_model(activation="relu"):
    """A plain model with all that a sub-network of any family may have."""
    layers = keras.layers
    generator = np.random.default_rng(0)
    image = keras.Input((None, None, 3), name="image")
    x = layers.ZeroPadding2D(1)(image)
    x = layers.Conv2D(8, 3, 2, use_bias=False)(x)
    x = layers.GroupNormalization(4)(x)
    x = layers.Activation(activation)(x)
    x = shortcut = layers.MaxPooling2D(3, 1, padding="same")(x)
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Activation("silu")(x)
    x = layers.Activation("relu")(layers.Add()([x, shortcut]))
    pooled = layers.GlobalAveragePooling2D(keepdims=True)(x)
    attention = layers.Dense(8, activation="tanh")(layers.Dense(4, activation="relu")(pooled))
    x = layers.Multiply()([x, layers.Rescaling(1.0, offset=1.0)(attention)])
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(image, layers.Dense(CLASSES)(x))
    for weight in model.weights:
        weight.assign_add(generator.normal(scale=0.3, size=weight.shape))
    return model


def random_images(size=SIZE):
    return np.random.default_rng(1).normal(size=(3, size, size, 3)).astype("float32")


@pytest.mark.parametrize("path", ["slimmest", "widest"])
def test_the_network_rebuilt_in_tf_keras_has_the_outputs_of_the_path(path):
    network = small_network(CLASSES, spec=SPEC, classifier_activation=None)
    plain = network.subnetwork(path, fold_batch_norm=True)
    rebuilt = legacy_model(plain, (SIZE, SIZE, 3))
    images = random_images()
    expected = network(images, path=path).numpy()
    assert np.abs(rebuilt(images).numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_resnet_is_rebuilt_with_the_pool_of_its_stem():
    network = tiny_network(TINY_RESNET, classifier_activation=None)
    shape = network.input_shape[1:]
    plain = network.subnetwork("widest", fold_batch_norm=True)
    assert any(isinstance(layer, keras.layers.MaxPooling2D) for layer in plain.layers)
    images = random_images(shape[0])
    expected = network(images, path="widest").numpy()
    found = legacy_model(plain, shape)(images).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_layers_of_every_kind_are_rebuilt():
    model = plain_model()
    images = random_images(20)
    outputs = legacy_model(model, (20, 20, 3))(images)
    np.testing.assert_allclose(outputs, model(images), atol=1e-5)


def test_an_unknown_layer_or_activation_is_named():
    image = keras.Input((SIZE, SIZE, 3))
    model = keras.Model(image, keras.layers.LayerNormalization(name="odd")(image))
    with pytest.raises(ValueError, match="layer 'odd', a LayerNormalization"):
        legacy_model(model, (SIZE, SIZE, 3))
    with pytest.raises(ValueError, match="Received: 'elu' in layer"):
        legacy_model(plain_model("elu"), (SIZE, SIZE, 3))


def test_a_rebuilt_network_that_computes_something_else_is_refused():
    image = keras.Input((SIZE, SIZE, 3))
    dilated = keras.layers.Conv2D(2, 3, padding="same", dilation_rate=2)
    with pytest.raises(ValueError, match=r"rebuilt .* differs by"):
        legacy_model(keras.Model(image, dilated(image)), (SIZE, SIZE, 3))


@pytest.mark.slow
def test_the_file_computes_the_path_in_int8_between_float_images_and_outputs(network, trained):
    content, filename, *_ = trained
    assert filename.read_bytes() == content
    assert [entry.name for entry in filename.parent.iterdir()] == ["m.tflite"]
    interpreter = Interpreter(model_content=content)
    assert interpreter.get_signature_list() == {
        "serving_default": {"inputs": ["image"], "outputs": ["output"]}
    }
    (image,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (image["shape"].tolist(), image["dtype"]) == ([1, SIZE, SIZE, 3], np.float32)
    assert (output["shape"].tolist(), output["dtype"]) == ([1, CLASSES], np.float32)
    images = random_images()
    expected = network(images, path=PATH).numpy()
    # Eight steps change little; int8 rounds to 1/256.
    assert np.abs(run(content, images) - expected).max() <= 0.02
    assert np.abs(run(content, images) - network(images, path="widest").numpy()).max() > 0.02


def test_every_operator_of_the_file_is_int8(trained):
    found = operators(trained[0])
    assert found.pop(("QUANTIZE", "FLOAT32")) == 1
    assert {type for _, type in found} == {"INT8"}
    assert found["CONV_2D", "INT8"] == 1 + BLOCKS
    assert found["DEPTHWISE_CONV_2D", "INT8"] == BLOCKS


def test_group_normalisation_stays_in_float_between_int8_convolutions():
    from keras_dsnet.export.qat_model import fake_quantized

    model = plain_model()
    rebuilt = legacy_model(model, (SIZE, SIZE, 3))
    rounded = fake_quantized(rebuilt, [images for images, _ in make_batches()])
    content = convert(
        lambda image: {"output": rounded(image, training=False)},
        {"image": tf.TensorSpec((1, SIZE, SIZE, 3))},
        "int8",
    )
    found = operators(content)
    assert found["RSQRT", "FLOAT32"] == 1
    names = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "LOGISTIC", "TANH", "MEAN")
    for name in (*names, "MAX_POOL_2D"):
        assert found[name, "INT8"]
        assert not found[name, "FLOAT32"]
    images = random_images()
    expected = np.asarray(model(images))
    assert np.abs(run(content, images) - expected).max() <= 0.0075 * np.abs(expected).max()


def test_the_network_and_the_process_stay_what_they_were(trained):
    *_, weights, weights_after = trained
    for before, after in zip(weights, weights_after, strict=True):
        np.testing.assert_array_equal(before, after)
    # tensorflow-model-optimization sets it, and makes another package of `tf.keras` by it.
    assert "TF_USE_LEGACY_KERAS" not in os.environ
    assert tf.keras.version() == keras.version()


@pytest.mark.slow
def test_export_loads_tf_keras_only_for_a_training():
    code = "import sys, keras_dsnet.export; print({'tf_keras'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.long
def test_labels_alone_are_learned_and_logits_stay_logits():
    network = small_network(
        CLASSES, spec=SPEC, classifier_activation=None, input_shape=(None, None, 3)
    )
    images, _ = make_batches(1)[0]
    labels = np.full(len(images), 3)
    content = quantize_aware(
        network,
        PATH,
        tf.data.Dataset.from_tensors((images, labels)).repeat(),
        steps_per_epoch=20,
        learning_rate=0.02,
        distillation=0,
        input_shape=(SIZE, SIZE, 3),
        verbose=False,
    )
    outputs = run(content, images)
    assert np.all(outputs.argmax(1) == 3)
    assert outputs.min() < 0
    assert ("SOFTMAX", "INT8") not in operators(content)


def with_batch(images=None, labels=None):
    batch = make_batches(1)[0]
    images = batch[0] if images is None else images
    return [(images, batch[1] if labels is None else labels)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": 99}, "Received: path=99"),
        ({"epochs": 0}, "epochs=0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch=0"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"distillation": 1.5}, "distillation=1.5"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"input_shape": (SIZE, 2 * SIZE, 3)}, r"input_shape=\(16, 32, 3\)"),
        ({"dataset": 7}, "`dataset` must be a tf.data.Dataset.*Received: "),
        ({"dataset": []}, "has no batches"),
        ({"dataset": iter(make_batches(1))}, "pass `steps_per_epoch`"),
        ({"dataset": [make_batches(1)[0][0]]}, r"batches \(images, labels\)"),
        ({"dataset": with_batch(images=np.zeros((8, SIZE, 9, 3), "float32"))}, r"\(8, 16, 9, 3\)"),
        ({"dataset": with_batch(np.zeros((8, SIZE, SIZE, 3), "uint8"))}, "not raw pixels.*uint8"),
        ({"dataset": with_batch(images=np.full((8, SIZE, SIZE, 3), np.inf))}, "finite values"),
        ({"dataset": with_batch(labels=np.eye(8))}, r"labels of shape \(8, 8\)"),
        ({"dataset": with_batch(labels=np.full(8, 0.5))}, "class numbers 0 to 4.*label 0.5"),
        ({"dataset": with_batch(labels=np.full(8, CLASSES))}, "class numbers 0 to 4.*label 5"),
    ],
)
def test_what_does_not_fit_is_one_line_before_the_work_starts(
    network, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.setattr(network, "subnetwork", lambda *a, **k: pytest.fail("the work has started"))
    filename = tmp_path / "m.tflite"
    filename.write_bytes(b"old")
    arguments = {"path": PATH, "dataset": make_batches(1), "filename": filename, **arguments}
    with pytest.raises(ValueError, match=message) as caught:
        quantize_aware(network, **arguments)
    assert "\n" not in str(caught.value)
    assert filename.read_bytes() == b"old"


def test_a_network_of_any_image_size_needs_a_size():
    network = small_network(CLASSES, spec=SPEC, input_shape=(None, None, 3))
    with pytest.raises(ValueError, match="pass `input_shape="):
        quantize_aware(network, PATH, make_batches())


def test_a_network_without_a_softmax_or_logits_is_refused():
    network = small_network(CLASSES, spec=SPEC, include_top=False)
    with pytest.raises(ValueError, match="include_top=False"):
        quantize_aware(network, PATH, make_batches())


def test_an_unwritable_file_is_known_before_the_work_starts(network, tmp_path, monkeypatch):
    monkeypatch.setattr(network, "subnetwork", lambda *a, **k: pytest.fail("the work has started"))
    with pytest.raises(OSError, match="nowhere"):
        quantize_aware(network, PATH, make_batches(), filename=tmp_path / "nowhere" / "m.tflite")


def test_a_training_that_diverges_writes_no_file(network, tmp_path, monkeypatch):
    # Rounding plays no part in it.
    name = "keras_dsnet.export.qat_model.fake_quantized"
    monkeypatch.setattr(name, lambda model, batches: model)
    arguments = {"learning_rate": 1e30, "filename": tmp_path / "m.tflite", "verbose": False}
    with pytest.raises(ValueError, match=r"loss of step [23] of 4 is .*`learning_rate`"):
        quantize_aware(network, PATH, make_batches(), **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.needs_shared
def test_on_cifar10_it_is_no_worse_than_post_training_int8(shared_dir, tmp_path):
    from keras_dsnet.applications import DSMobileNet
    from keras_dsnet.applications.ds_mobilenet import preprocess_input

    network = DSMobileNet(weights="cifar10")
    options = {"image_size": 32, "preprocess": preprocess_input}
    train, test = (
        load_source("cifar10", shared_dir / "tfds", split, eval_split="test")
        for split in ("train", "eval")
    )
    batches = training_pipeline(train, batch_size=16, seed=0, augmentation="cifar", **options)
    images, labels = next(iter(evaluation_pipeline(test, batch_size=10000, **options)))

    filename = tmp_path / "m.tflite"
    samples = next(iter(batches.unbatch().batch(256)))[0]
    export_subnetwork(
        network, "widest", filename, quantize="int8", representative_data=samples.numpy()
    )
    content = quantize_aware(network, "widest", batches, steps_per_epoch=100, verbose=False)
    post, aware = (run(file, images.numpy()) for file in (filename.read_bytes(), content))
    exact = network(images, path="widest").numpy()

    def correct(outputs):
        return outputs.argmax(1) == labels.numpy()

    # Of the images that only one gets right, each has about half; twice the standard deviation of
    # that is within chance, and changes sign with the processor that trains.
    chance = 2 * np.sqrt(np.sum(correct(aware) != correct(post)))
    assert correct(aware).sum() >= correct(post).sum() - chance
    farther = np.abs(aware - exact).mean(1) - np.abs(post - exact).mean(1)
    assert farther.mean() <= 2 * farther.std() / np.sqrt(len(farther))
