"""The images, labels and weights that both trainers accept or refuse."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_families import TINY_RESNET, tiny_network
from trainers import make_network, values_of

from keras_dsnet.training import L2SGD, GateTrainer, SupernetTrainer

TRAINERS = [SupernetTrainer, GateTrainer]
GENERATOR = np.random.default_rng(1)
IMAGES = GENERATOR.normal(size=(12, 16, 16, 3)).astype("float32")
LABELS = GENERATOR.integers(0, 5, 12)
ONE_HOT = np.eye(5, dtype="float32")[LABELS]
WEIGHTS = GENERATOR.uniform(0, 3, 12).astype("float32")
WEIGHTS[:3] = 0


def make_trainer(trainer_class=SupernetTrainer, network=None, eagerly=True, **options):
    trainer = trainer_class(network or make_network(), **options)
    trainer.compile(L2SGD(0.1, weight_decay=0.0), run_eagerly=eagerly)
    return trainer


@pytest.fixture(params=TRAINERS, scope="module")
def trainer(request):
    """A network that no test changes."""
    return make_trainer(request.param)


def batches(labels=LABELS, images=IMAGES, size=4):
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(size)


FORMS = {
    "column": LABELS[:, None],
    "uint8": LABELS.astype("uint8"),
    "int64 column": LABELS.astype("int64")[:, None],
    "float": LABELS.astype("float32"),
    "one-hot": ONE_HOT,
    "int one-hot": ONE_HOT.astype("int32"),
    "bool one-hot": ONE_HOT.astype(bool),
}


@pytest.mark.slow
@pytest.mark.parametrize("labels", FORMS.values(), ids=FORMS)
def test_labels_of_every_form_mean_the_same(trainer, labels):
    expected = trainer.test_on_batch(IMAGES, LABELS, return_dict=True)
    logs = trainer.test_on_batch(IMAGES, labels, return_dict=True)
    assert logs == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_one_trainer_takes_labels_of_one_form_after_another(trainer_class):
    trainer = make_trainer(trainer_class, eagerly=False)
    forms = [LABELS, ONE_HOT, LABELS[:, None], LABELS]
    losses = [trainer.evaluate(IMAGES, labels, batch_size=4, verbose=0)[0] for labels in forms]
    assert losses == pytest.approx(losses[:1] * 4, rel=1e-5)


@pytest.mark.parametrize("estimator", ["straight_through", "exact"])
def test_soft_labels_have_the_cross_entropy_of_their_probabilities(estimator):
    soft = 0.75 * ONE_HOT + 0.05
    trainer = make_trainer(GateTrainer, estimator=estimator)
    losses, results = trainer.losses(IMAGES, tf.constant(soft))
    each = [
        trainer.losses(IMAGES, tf.fill(12, k), weights=tf.constant(soft[:, k]))[0] for k in range(5)
    ]
    total = sum(float(one["classification_loss"]) for one in each)
    assert float(losses["classification_loss"]) == pytest.approx(total, rel=1e-5)
    _, expected = trainer.losses(IMAGES, tf.constant(LABELS, tf.int32))
    np.testing.assert_array_equal(results["right"], expected["right"])


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_a_column_of_labels_trains_as_the_same_labels_do(trainer_class):
    trained = []
    for labels in (LABELS, LABELS[:, None], ONE_HOT):
        trainer = make_trainer(trainer_class)
        trainer.train_on_batch(IMAGES, labels)
        trained.append(values_of(trainer.model.variables))
    for first, *others in zip(*trained):
        for other in others:
            np.testing.assert_allclose(first, other, atol=1e-6)


def replaced(value):
    labels = LABELS.astype("float64")
    labels[7] = value
    return labels


BAD_DATA = {
    "label 5 of 5": (IMAGES, replaced(5), "label 5 in"),
    "negative": (IMAGES, replaced(-1).astype("int32"), "label -1 in"),
    "fraction": (IMAGES, replaced(1.5), r"label 1\.5 in"),
    "NaN": (IMAGES, replaced(np.nan), "label nan in"),
    "empty row": (IMAGES, ONE_HOT * 0, "sum 0 in"),
    "other classes": (IMAGES, np.eye(7)[LABELS], r"labels of shape \(12, 7\)"),
    "fewer": (IMAGES, LABELS[:8], r"labels of shape \(8,\) for images of shape \(12, 16"),
    "strings": (IMAGES, np.array(list("abcdefghijkl")), "dtype string"),
    "dictionary": (IMAGES, {"a": LABELS}, "a dict with the keys"),
    "list": (IMAGES, LABELS.tolist(), "a list beside the images"),
    "none": (IMAGES, None, "no labels in"),
    "size": (np.zeros((12, 8, 8, 3)), LABELS, r"images of shape \(1, 8, 8, 3\)"),
    "pixels": (np.zeros((12, 16, 16, 3), "uint8"), LABELS, "dtype uint8"),
    "image list": (list(IMAGES), LABELS, "a list for the images"),
    "image dictionary": ({"image": IMAGES}, LABELS, "a dict for the images"),
    "nothing": (None, None, "None for the images"),
}


@pytest.mark.parametrize(("x", "y", "received"), BAD_DATA.values(), ids=BAD_DATA)
def test_data_that_does_not_fit_is_refused_before_the_first_step(trainer, x, y, received):
    begun = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: pytest.fail("it trains"))
    good = {"x": IMAGES, "y": LABELS}
    for refused in (
        lambda: trainer.fit(x, y, callbacks=[begun], verbose=0),
        lambda: trainer.fit(**good, validation_data=(x, y), callbacks=[begun], verbose=0),
        lambda: trainer.evaluate(x, y, verbose=0),
    ):
        with pytest.raises(ValueError, match=f"Received: .*{received}") as error:
            refused()
        assert "\n" not in str(error.value)


SETS = {
    "unbatched": (batches().unbatch(), r"one image of shape \(16, 16, 3\)"),
    "images": (batches().map(lambda x, y: x), "no labels"),
    "dictionaries": (batches().map(lambda x, y: {"image": x}), "a dict with the keys"),
    "four": (batches().map(lambda x, y: (x, y, y, y)), "4 parts"),
    "other size": (batches(images=np.zeros((12, 8, 8, 3))), r"shape \(None, 8, 8, 3\)"),
    "endless": (batches().repeat(), "=None"),
    "empty": (batches().take(0), "without a batch"),
}


@pytest.mark.parametrize(("dataset", "received"), SETS.values(), ids=SETS)
def test_data_sets_that_do_not_fit_are_refused_before_the_first_step(trainer, dataset, received):
    begun = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: pytest.fail("it trains"))
    options = {"callbacks": [begun], "verbose": 0, "shuffle": False}
    for refused in (
        lambda: trainer.fit(dataset, **options),
        lambda: trainer.fit(batches(), validation_data=dataset, **options),
        lambda: trainer.evaluate(dataset, verbose=0),
    ):
        with pytest.raises(ValueError, match=f"Received: .*{received}") as error:
            refused()
        assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer_class", "options"),
    [
        (SupernetTrainer, {"sandwich": False, "label_smoothing": 0.1}),
        (GateTrainer, {"routes": (0, 2)}),
    ],
)
def test_a_wrong_batch_in_the_middle_of_an_epoch_ends_training_before_it(trainer_class, options):
    """Only an assertion can find it in a traced step, and no variable or statistic moves."""
    wrong = LABELS.copy()
    wrong[9] = 5
    holes = IMAGES.copy()
    holes[10] = np.nan
    trainer = make_trainer(trainer_class, eagerly=False, **options)
    # Labels of three forms: the step is traced for one, and again with open shapes for all.
    for labels in (LABELS[:, None], LABELS, ONE_HOT.astype("int64")):
        trainer.fit(batches(labels).take(2), shuffle=False, verbose=0)
    groups = [trainer.model.variables, getattr(trainer, "teacher_variables", [])]
    expected = [values_of(group) for group in groups]
    bad = [batches(wrong).skip(2), batches(images=holes).skip(2), batches().skip(2).map(_emptied)]
    lines = ["label 5 in a training batch", "NaN or infinite values in a", "0 images in a"]
    for dataset, line in zip(bad, lines, strict=True):
        with pytest.raises(ValueError, match=f"Received: {line}") as error:
            trainer.fit(dataset, shuffle=False, verbose=0)
        assert "\n" not in str(error.value)
        for group, values in zip(groups, expected):
            for variable, value in zip(group, values):
                np.testing.assert_array_equal(variable, value, err_msg=variable.path)
    with pytest.raises(ValueError, match="label 5 in an evaluation batch"):
        trainer.evaluate(batches(wrong), verbose=0)


def _emptied(images, labels):
    none = tf.zeros([], tf.int32)
    return images[:none], labels[:none]


def test_a_data_set_that_turns_out_to_be_empty_is_no_success(trainer):
    empty = batches().filter(lambda x, y: False)
    with pytest.raises(ValueError, match="the data without a batch"):
        trainer.evaluate(empty, verbose=0)
    with pytest.raises(ValueError, match="the data without a batch"):
        make_trainer(sandwich=False).fit(batches(), validation_data=empty, shuffle=False, verbose=0)
    with pytest.raises(ValueError, match="`x` without a batch"):
        trainer.fit(empty, shuffle=False, verbose=0)


def test_sizes_that_only_a_batch_shows_are_checked_too():
    def generate():
        yield np.zeros((2, 16, 16, 3), "float32"), np.zeros(2, "int32")
        yield np.zeros((2, 8, 8, 3), "float32"), np.zeros(2, "int32")

    spec = tf.TensorSpec([None] * 4), tf.TensorSpec([None], tf.int32)
    dataset = tf.data.Dataset.from_generator(generate, output_signature=spec)
    trainer = make_trainer(eagerly=False, sandwich=False)
    with pytest.raises(ValueError, match=r"Received: images of shape \(2, 8, 8, 3\) in an eval"):
        trainer.evaluate(dataset, verbose=0)


def plain_and_trainer(width=1):
    network = make_network()
    plain = network.subnetwork(width)
    plain.compile(
        keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        run_eagerly=True,
    )
    options = {"label_path": width, "sandwich": False, "target": "in_place"}
    return plain, make_trainer(network=network, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "weights", [{"sample_weight": WEIGHTS}, {"class_weight": {0: 3.0, 2: 0.0, 4: 0.5}}]
)
def test_weights_train_as_they_do_in_keras(weights):
    plain, trainer = plain_and_trainer()
    names = {"loss": "loss", "width_1_accuracy": "accuracy"}
    # The last batch has 2 images.
    options = {"batch_size": 5, "verbose": 0}
    expected = plain.evaluate(IMAGES, LABELS, sample_weight=WEIGHTS, return_dict=True, **options)
    triples = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS, WEIGHTS)).batch(5)
    logs = trainer.evaluate(triples, return_dict=True, verbose=0)
    assert {names[n]: v for n, v in logs.items() if n in names} == pytest.approx(expected, rel=1e-4)
    options |= {"epochs": 2, "shuffle": False, **weights}
    expected = plain.fit(IMAGES, LABELS, **options).history
    history = trainer.fit(IMAGES, LABELS[:, None], **options).history
    for ours, name in names.items():
        np.testing.assert_allclose(history[ours], expected[name], rtol=1e-3)
    for images in (IMAGES, IMAGES[:4]):
        ours = trainer.model(images, path=1, training=True)
        np.testing.assert_allclose(ours, plain(images, training=True), atol=1e-3)


def test_class_weights_are_taken_with_data_sets_and_end_with_the_fit():
    trainer = make_trainer(network=make_network(), sandwich=False)
    triples = tf.data.Dataset.from_tensors((IMAGES, LABELS, np.full(12, 2.0, "float32")))
    pairs = tf.data.Dataset.from_tensors((IMAGES, ONE_HOT))
    options = {"shuffle": False, "verbose": 0}
    halves = dict.fromkeys(range(5), 0.5)
    weighted = trainer.fit(pairs, class_weight=halves, **options).history["loss"]
    before = float(trainer.train_on_batch(IMAGES, LABELS, return_dict=True)["loss"])
    with pytest.raises(ValueError, match="Only one of `class_weight` and sample weights"):
        trainer.fit(triples, class_weight=halves, **options)
    fresh = make_trainer(network=make_network(), sandwich=False)
    plain = fresh.train_on_batch(IMAGES, LABELS, return_dict=True)["loss"]
    assert weighted[0] == pytest.approx(0.5 * float(plain), rel=1e-5)
    assert before > 0.6 * float(plain), "the next fit has no class weights"
    for wrong, received in (
        ({5: 1.0}, "class_weight=5"),
        ({"cat": 1.0}, "class_weight='cat'"),
        ({0: np.nan}, r"class_weight\[0\]=nan"),
        ([1.0] * 5, "a list"),
    ):
        with pytest.raises(ValueError, match=f"Received: {received}"):
            trainer.fit(pairs, class_weight=wrong, **options)


def test_a_weight_multiplies_every_loss_of_its_image():
    network = make_network()
    labels = tf.constant(LABELS, tf.int32)
    trainer = make_trainer(network=network, num_random=1)
    subnetworks = trainer._subnetworks(tf.constant([[1]]))
    state = values_of(network.variables)
    runs = []
    for weights in (None, np.full(12, 2.0), np.eye(12)[3] * 12):
        for variable, value in zip(network.variables, state):
            variable.assign(value)
        weights = None if weights is None else tf.constant(weights, tf.float32)
        runs.append(trainer._gradients(IMAGES, labels, subnetworks, weights))
    (losses, _, gradients), (doubled, _, twice), (single, logits, _) = runs
    np.testing.assert_allclose(doubled, 2 * np.array(losses), rtol=1e-5)
    for one, two in zip(gradients, twice):
        np.testing.assert_allclose(two, 2 * one, atol=1e-4)
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    assert float(single[0]) == pytest.approx(float(entropy[3]), rel=1e-5)
    assert np.all(np.abs(np.array(single) - np.array(losses)) > 1e-4), "distillation has it too"


@pytest.mark.parametrize("estimator", ["straight_through", "exact"])
def test_a_weight_multiplies_the_losses_of_the_gates_too(estimator):
    trainer = make_trainer(GateTrainer, estimator=estimator)
    labels = tf.constant(LABELS, tf.int32)
    names = ("classification_loss", "complexity_loss", "sgs_loss")
    each = [trainer.losses(IMAGES[i : i + 1], labels[i : i + 1])[0] for i in range(12)]
    losses, _ = trainer.losses(IMAGES, labels, weights=tf.constant(WEIGHTS))
    for name in names:
        expected = np.mean(WEIGHTS * np.array([float(one[name]) for one in each]))
        assert float(losses[name]) == pytest.approx(expected, rel=1e-4), name


@pytest.mark.parametrize("weights", [np.ones((12, 2)), np.full(12, np.inf), np.ones(11)])
def test_weights_that_are_no_number_for_each_image_are_refused(trainer, weights):
    with pytest.raises(ValueError, match=r"^Sample weights must be a finite number for each image"):
        trainer.fit(IMAGES, LABELS, sample_weight=weights, verbose=0)


def frozen_network():
    network = make_network()
    network.trainable = False
    return network


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_a_frozen_network_is_refused_before_the_first_step(trainer_class):
    trainer = make_trainer(trainer_class, frozen_network())
    for step in (trainer.fit, trainer.train_on_batch):
        with pytest.raises(ValueError, match=r"has nothing to train.* Received: a frozen network$"):
            step(IMAGES, LABELS)
    assert trainer.evaluate(IMAGES, LABELS, verbose=0)


def test_layers_that_are_frozen_stay_and_the_others_train_as_before():
    trained = []
    for freeze in (False, True):
        network = make_network()
        convs = [s.layer for steps in network.sections for s in steps if s.kind == "conv"]
        for conv in convs[:2] * freeze:
            conv.trainable = False
        before = {v.path: v.numpy() for layer in convs[:2] for v in layer.variables}
        trainer = make_trainer(network=network, num_random=1)
        assert len(trainer.optimized_variables) == len(network.trainable_variables) - 1
        trainer.train_on_batch(IMAGES, LABELS)
        trained.append({v.path: v.numpy() for v in network.variables})
    assert before
    for path, value in trained[1].items():
        if path in before:
            np.testing.assert_array_equal(value, before[path])
            assert np.any(value != trained[0][path])
        else:
            np.testing.assert_allclose(value, trained[0][path], atol=1e-6, err_msg=path)


def test_of_several_gates_the_frozen_ones_stay():
    network = tiny_network(TINY_RESNET)
    network.slimming_gates[1].trainable = False
    before = [gate.w2.numpy() for gate in network.slimming_gates]
    make_trainer(GateTrainer, network).train_on_batch(IMAGES, LABELS)
    moved = [bool(np.any(g.w2 != b)) for g, b in zip(network.slimming_gates, before)]
    assert moved == [True, False, True]


def test_gates_are_trained_once_a_step_was_and_not_before():
    network = make_network()
    trainer = make_trainer(GateTrainer, network)
    trainer.fit(IMAGES, LABELS, epochs=0, verbose=0)
    trainer.evaluate(IMAGES, LABELS, verbose=0)
    assert not network.gates_trained
    SupernetTrainer(network)

    def interrupt(batch, logs):
        raise KeyboardInterrupt

    stop = keras.callbacks.LambdaCallback(on_train_batch_end=interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(IMAGES, LABELS, verbose=0, callbacks=[stop])
    assert network.gates_trained


def test_fit_takes_the_arguments_of_keras_again_and_again():
    trainer = make_trainer(network=make_network(), eagerly=True, sandwich=False)
    options = {"verbose": 0, "shuffle": False}
    first = trainer.fit(IMAGES, LABELS, 4, 2, validation_split=0.25, **options)
    assert len(first.history["val_loss"]) == 2
    assert trainer.optimizer.iterations == 6
    trainer.fit(batches(), initial_epoch=2, epochs=3, validation_data=batches(), **options)
    assert trainer.optimizer.iterations == 9
    trainer.fit(batches().repeat(), steps_per_epoch=2, **options)
    assert trainer.optimizer.iterations == 11

    def generate():
        for start in (0, 4, 8):
            yield IMAGES[start : start + 4], LABELS[start : start + 4], WEIGHTS[start : start + 4]

    trainer.fit(generate(), **options)
    assert trainer.optimizer.iterations == 14
    trainer.compile(L2SGD(0.01), run_eagerly=True)
    trainer.fit(batches(), **options)
    assert trainer.optimizer.iterations == 3


@pytest.mark.slow
def test_several_steps_run_in_one_call():
    trainer = SupernetTrainer(make_network(), sandwich=False)
    trainer.compile(L2SGD(0.1), steps_per_execution=2)
    assert np.isfinite(trainer.fit(batches(), shuffle=False, verbose=0).history["loss"][0])
    assert trainer.optimizer.iterations == 3


@pytest.mark.parametrize("trainer_class", TRAINERS)
@pytest.mark.parametrize(
    ("options", "received"),
    [
        ({"loss": "mse"}, "loss='mse'"),
        ({"metrics": ["accuracy"]}, r"metrics=\['accuracy'\]"),
        ({"weighted_metrics": ["accuracy"]}, r"weighted_metrics=\['accuracy'\]"),
        ({"loss_weights": [1.0]}, r"loss_weights=\[1.0\]"),
        ({"optimizer": keras.optimizers.SGD(use_ema=True)}, "use_ema=True"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_what_compile_would_ignore_is_refused(trainer_class, options, received):
    with pytest.raises(ValueError, match=f"Received: .*{received}"):
        trainer_class(make_network()).compile(**options)


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_a_network_without_classifier_and_other_models_are_refused(trainer_class):
    features = tiny_network(TINY_RESNET, include_top=False)
    with pytest.raises(ValueError, match=r"a classifier.* Received: .*include_top=False$"):
        trainer_class(features)
    with pytest.raises(ValueError, match=r"DynamicSlimmableNetwork.* Received: a Sequential$"):
        trainer_class(keras.Sequential())


NAN = float("nan")
BAD_ARGUMENTS = [
    (SupernetTrainer, "target", None),
    (SupernetTrainer, "target", ["ema"]),
    (SupernetTrainer, "num_random", 1.5),
    (SupernetTrainer, "num_random", "2"),
    (SupernetTrainer, "num_random", True),
    (SupernetTrainer, "temperature", NAN),
    (SupernetTrainer, "temperature", "1"),
    (SupernetTrainer, "temperature", float("inf")),
    (SupernetTrainer, "ema_momentum", 1.0),
    (SupernetTrainer, "ema_momentum", NAN),
    (SupernetTrainer, "ema_warmup", "no"),
    (SupernetTrainer, "sandwich", None),
    (SupernetTrainer, "label_path", 1),
    (SupernetTrainer, "label_path", None),
    (SupernetTrainer, "label_smoothing", -0.1),
    (SupernetTrainer, "label_smoothing", 1.0),
    (SupernetTrainer, "label_smoothing", NAN),
    (SupernetTrainer, "decay_norms_and_biases", 1),
    (SupernetTrainer, "seed", 2**31),
    (SupernetTrainer, "seed", None),
    (GateTrainer, "routes", 3),
    (GateTrainer, "routes", ()),
    (GateTrainer, "routes", "01"),
    (GateTrainer, "strategy", None),
    (GateTrainer, "loss_weights", 1.0),
    (GateTrainer, "loss_weights", (1, 1)),
    (GateTrainer, "loss_weights", (1, NAN, 1)),
    (GateTrainer, "loss_weights", (1, float("inf"), 1)),
    (GateTrainer, "loss_weights", "111"),
    (GateTrainer, "loss_weights", (1, None, 1)),
    (GateTrainer, "temperature", 0),
    (GateTrainer, "temperature", NAN),
    (GateTrainer, "temperature", "1"),
    (GateTrainer, "estimator", 1),
    (GateTrainer, "seed", 0.5),
]


@pytest.fixture(scope="module")
def network():
    return make_network()


@pytest.mark.parametrize(("trainer_class", "name", "value"), BAD_ARGUMENTS)
def test_arguments_that_are_none_are_named(network, trainer_class, name, value):
    routes = network.routes
    with pytest.raises(ValueError, match=rf"^`{name}` must .* Received: {name}=") as error:
        trainer_class(network, **{name: value})
    assert "\n" not in str(error.value)
    assert network.routes == routes
