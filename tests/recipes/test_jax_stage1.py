import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from programs import run_program

from keras_dsnet.data.image_source import ArraySource
from keras_dsnet.models import (
    DynamicSlimmableNetwork,
    MobileNetSpec,
    MobileNetStage,
    ResNetSpec,
    ResNetStage,
)
from keras_dsnet.runs import TrainingRun, WorkDir
from keras_dsnet.runs.csv_log import read_log
from keras_dsnet.training import L2SGD, SupernetTrainer, cosine_schedule, evaluate_paths

jax = pytest.importorskip("jax")
from keras_dsnet_recipes.lib.jax_training import files, side_by_side, task  # noqa: E402
from keras_dsnet_recipes.lib.jax_training.supernet import JaxSupernet  # noqa: E402

MOBILENET = MobileNetSpec(
    # A wide front: a path does not have all channels of the layers before the gate either.
    stem=(4, 8),
    stages=(
        MobileNetStage(1, 2, (4, 8)),
        MobileNetStage(1, 2, (8, 12, 16), gated=True),
        MobileNetStage(1, 1, (8, 16, 24)),
    ),
)
RESNET = ResNetSpec(
    stem=(8,), stages=(ResNetStage(1, 2, (8, 16, 24)), ResNetStage(1, 2, (8, 16, 24)))
)
RECIPES = pathlib.Path(__file__).resolve().parents[2] / "recipes"
SPECS = {"mobilenet": MOBILENET, "resnet": RESNET}
STEPS, EPOCHS, BATCH = 6, 3, 8


def make_source():
    """Images whose class is their colour."""
    generator = np.random.default_rng(0)
    labels = np.arange(STEPS * BATCH) % 5
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 0, 0]])
    images = colours[labels][:, None, None] * generator.uniform(0.3, 1, (len(labels), 16, 16, 1))
    return ArraySource("colours", images.astype("uint8"), labels.astype("int32"), 5)


def make_training(folder, kind="mobilenet", rate=0.05, **options):
    """Returns a run of a network no variable of which has its first value."""
    keras.utils.set_random_seed(0)
    network = DynamicSlimmableNetwork(SPECS[kind], input_shape=(16, 16, 3), classes=5)
    generator = np.random.default_rng(0)
    for variable in network.variables:
        noise = generator.normal(scale=0.1, size=variable.shape)
        variable.assign_add(np.abs(noise) if "variance" in variable.name else noise)
    trainer = SupernetTrainer(network, **options)
    trainer.compile(L2SGD(cosine_schedule(rate, STEPS * EPOCHS, STEPS)))
    return TrainingRun(
        trainer,
        WorkDir(folder, {"epochs": EPOCHS}, growing=("epochs",)),
        lambda step: None,
        batch_size=BATCH,
        steps_per_epoch=STEPS,
        epochs=EPOCHS,
    )


def written(folder, training, augmentation="none"):
    """Returns the task of a run as JAX reads it."""
    task.write_task(folder, training, make_source(), augmentation)
    return files.read(folder / files.TASK)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("mobilenet", "ensemble"),
        pytest.param("mobilenet", "in_place", marks=pytest.mark.long),
        pytest.param("resnet", "ema", marks=pytest.mark.long),
    ],
)
def test_a_step_is_that_of_the_trainer(kind, target, tmp_path):
    options = [
        {"seed": 0, "label_smoothing": 0.1, "temperature": 1.0},
        {"seed": 1, "label_smoothing": 0.1, "temperature": 2.0, "scale_distillation": False},
    ]
    trainings = [
        make_training(tmp_path / str(n), kind, target=target, num_random=2, **each)
        for n, each in enumerate(options)
    ]
    tasks = [written(tmp_path / f"tasks/{n}", each) for n, each in enumerate(trainings)]
    source = make_source()
    supernet = JaxSupernet(tasks, source.images, source.labels)
    generator = np.random.default_rng(1)
    images = generator.normal(size=(BATCH, 16, 16, 3)).astype("float32")
    labels = (np.arange(BATCH) % 5).astype("int32")
    for _ in range(2):
        subnetworks, draws = [], []
        for training in trainings:
            subnetworks.append(training.trainer._subnetworks(training.trainer.draw_widths()))
            paths = subnetworks[-1].paths[1:-1]
            draws.append([[int(width) for width in path.gates] for path in paths])
        with jax.default_matmul_precision("highest"):
            step = jax.jit(jax.vmap(supernet.gradients, in_axes=(0, None, None, 0)))
            gradients, results = step(supernet.state, images, labels, np.array(draws))
            losses, _, moments, widths = results
            update = jax.jit(jax.vmap(supernet.update))
            supernet.state = update(supernet.state, gradients, moments, widths)
        for number, training in enumerate(trainings):
            trainer = training.trainer
            expected, _, wanted = trainer._gradients(
                tf.constant(images), tf.constant(labels), subnetworks[number]
            )
            np.testing.assert_allclose(losses[number], expected, rtol=1e-4)
            for variable, gradient, each in zip(
                trainer.optimized_variables, wanted, supernet._parts(gradients[number])
            ):
                scale = np.abs(gradient).max() + 1e-3
                np.testing.assert_allclose(each, gradient, atol=1e-3 * scale, err_msg=variable.path)
            trainer.optimizer.apply_gradients(zip(wanted, trainer.optimized_variables))
            trainer._average.update(trainer.optimizer.iterations, 1)
            compare(supernet.arrays(number), trainer)


def compare(arrays, trainer):
    """Compares the variables, the momenta and the teacher of a state with those of a trainer."""
    places = {id(variable): index for index, variable in enumerate(trainer.model.variables)}
    pairs = [(f"variable/{index}", v) for index, v in enumerate(trainer.model.variables)]
    pairs += [(f"momentum/{number}", v) for number, v in enumerate(trainer.optimizer.momentums)]
    for variable, average in zip(trainer._average.variables, trainer.teacher_variables):
        pairs.append((f"teacher/{places[id(variable)]}", average))
    for name, variable in pairs:
        value = variable.numpy()
        scale = np.abs(value).max() + 1e-3
        message = f"{name} {variable.path}"
        np.testing.assert_allclose(arrays[name], value, atol=1e-3 * scale, err_msg=message)


@pytest.mark.long
def test_a_trained_task_ends_the_run(tmp_path, capsys):
    training = make_training(tmp_path / "run", target="in_place", num_random=1)
    folder, source = tmp_path / "tasks" / "a", make_source()
    written(folder, training)
    side_by_side.train([folder])
    assert side_by_side.find_tasks([tmp_path / "tasks"]) == [], "nothing is left to train"
    again = make_training(tmp_path / "run", target="in_place", num_random=1)
    task.take_result(folder, again, source, "none")
    assert again.is_complete()
    result = files.read(folder / files.RESULT)
    compare(result, again.trainer)
    rows = read_log(again.workdir.log)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["widest_accuracy"] > max(0.6, rows[0]["widest_accuracy"])
    last = cosine_schedule(0.05, STEPS * EPOCHS, STEPS)(STEPS * EPOCHS - 1)
    assert rows[-1]["learning_rate"] == pytest.approx(float(last))
    # The network that TensorFlow runs has learnt what JAX taught it.
    inputs = again.trainer.model.normalization(tf.cast(source.images, tf.float32))
    (row,) = evaluate_paths(again.trainer.model, [(inputs, source.labels)], ["widest"], False)
    assert row["top1"] > 0.6
    assert "trained by JAX" in capsys.readouterr().out


@pytest.mark.long
def test_a_task_goes_on_from_its_progress(tmp_path, monkeypatch):
    options = [{"seed": seed, "target": "ensemble", "num_random": 1} for seed in (0, 1)]
    results = []
    for name in ("whole", "stopped"):
        folders = [tmp_path / name / str(n) for n in range(2)]
        for folder, each in zip(folders, options):
            written(folder, make_training(tmp_path / "runs" / name / folder.name, **each), "cifar")
        if name == "stopped":
            with monkeypatch.context() as patch:
                patch.setattr(JaxSupernet, "run_epoch", stopped_after_one(JaxSupernet.run_epoch))
                with pytest.raises(KeyboardInterrupt):
                    side_by_side.train(folders)
        assert side_by_side.grouped(folders, 6) == [folders], "seeds train side by side"
        assert side_by_side.grouped(folders, 1) == [[folder] for folder in folders]
        side_by_side.train(folders)
        results.append([files.read(folder / files.RESULT) for folder in folders])
    for whole, stopped in zip(*results):
        assert [row["epoch"] for row in stopped["settings"]["log"]] == [1, 2, 3]
        for array in set(whole) - {"settings"}:
            np.testing.assert_array_equal(whole[array], stopped[array], err_msg=array)
    first, second = results[0]
    assert np.abs(first["variable/0"] - second["variable/0"]).max() > 0, "seeds differ"


def stopped_after_one(run_epoch):
    """Returns `run_epoch`, which a user interrupts in the second epoch."""
    epochs = []

    def run(self, *arguments):
        epochs.append(1)
        if len(epochs) > 1:
            raise KeyboardInterrupt
        return run_epoch(self, *arguments)

    return run


def test_other_kinds_of_tasks_are_trained_apart(tmp_path):
    folders = []
    for name, options in {"a": {"num_random": 1}, "b": {"num_random": 2}}.items():
        training = make_training(tmp_path / "runs" / name, target="in_place", **options)
        folders.append(tmp_path / "tasks" / name)
        written(folders[-1], training)
    assert side_by_side.grouped(folders, 6) == [[folder] for folder in folders]


def test_tasks_of_other_learning_rates_are_trained_apart(tmp_path):
    folders = []
    for rate in (0.05, 0.1):
        training = make_training(tmp_path / f"runs/{rate}", rate=rate, target="in_place")
        folders.append(tmp_path / "tasks" / str(rate))
        written(folders[-1], training)
    assert side_by_side.grouped(folders, 6) == [[folder] for folder in folders]


def test_a_result_of_another_run_is_refused(tmp_path):
    training = make_training(tmp_path / "run", target="in_place", num_random=1)
    settings = written(tmp_path / "task", training)["settings"]
    files.write(tmp_path / "task" / files.RESULT, {}, {**settings, "step": STEPS * EPOCHS})
    other = make_training(tmp_path / "other", target="in_place", num_random=2)
    with pytest.raises(ValueError, match="another value of 'num_random'"):
        task.take_result(tmp_path / "task", other, make_source(), "none")
    assert not other.workdir.checkpoint.exists()
    same = make_training(tmp_path / "same", target="in_place", num_random=1)
    source = make_source()
    source.images = source.images[::-1]
    with pytest.raises(ValueError, match="another value of 'images'"):
        task.take_result(tmp_path / "task", same, source, "none")


@pytest.mark.parametrize("length", [0, 100, -100])
def test_a_damaged_file_is_told_in_one_line(length, tmp_path):
    written(tmp_path / "task", make_training(tmp_path / "run", target="in_place"))
    path = tmp_path / "task" / files.TASK
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"task\.npz is damaged"):
        files.read(path)


def test_other_images_are_refused(tmp_path):
    images, labels = np.zeros((2, 4, 4, 3), "uint8"), np.zeros(2, "int32")
    path = tmp_path / files.write_images(tmp_path, images, labels)
    files.write(path, {"images": images + 1, "labels": labels}, {})
    with pytest.raises(ValueError, match="does not hold the images"):
        files.read_images(path)


def test_a_folder_without_a_task_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no task\.npz in it"):
        side_by_side.find_tasks([tmp_path])


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--random_erasing=0.5", "--jax_task supports --random_erasing=0.0 only"),
        ("--augmentation=imagenet", "--jax_task supports --augmentation=none or cifar only"),
        ("--mixed_precision=bfloat16", "--jax_task supports --mixed_precision=none only"),
    ],
)
def test_flags_without_an_equivalent_in_jax_are_told_first(flag, told, tmp_path):
    done = run_program(
        RECIPES / "imagenet_stage1.py",
        "--dataset=digits",
        f"--workdir={tmp_path / 'run'}",
        f"--jax_task={tmp_path / 'task'}",
        flag,
    )
    assert done.returncode == 1
    assert told in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_table_waits_for_its_tasks(tmp_path):
    arguments = ["--table=beyond", "--arms=hard_targets", "--seeds=0", "--quick"]
    arguments += [f"--workdir={tmp_path / 'runs'}", f"--jax_tasks={tmp_path / 'tasks'}"]
    done = run_program(RECIPES / "reproduce.py", *arguments)
    assert done.returncode == 0, done.stderr
    # The arm is the same setting as one of Table 6, and shares its run.
    assert "table6_digits_try_best_s0 waits for tableresnet_digits_supernet_s0" in done.stdout
    assert f"jax_stage1.py --tasks={tmp_path / 'tasks'}" in done.stdout
    found = side_by_side.find_tasks([tmp_path / "tasks"])
    assert [folder.name for folder in found] == ["tableresnet_digits_supernet_s0"]
    assert not (tmp_path / "runs" / "results").exists()
    assert "results are in" not in done.stdout


def test_the_training_needs_no_tensorflow():
    code = "import sys, keras_dsnet_recipes.lib.jax_training.side_by_side as _\n"
    code += "print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.long
def test_the_programs_train_digits_even_if_killed(tmp_path):
    arguments = ["--dataset=digits", "--image_size=32", "--batch_size=64", "--epochs=4"]
    arguments += ["--alpha=0.25", "--front_alpha=0.25", "--target=in_place", "--num_random=1"]
    arguments += [f"--workdir={tmp_path / 'run'}", f"--jax_task={tmp_path / 'tasks' / 'digits'}"]
    assert run_program(RECIPES / "imagenet_stage1.py", *arguments).returncode == 0
    assert not (tmp_path / "run" / "supernet.keras").exists()
    program = [sys.executable, str(RECIPES / "jax_stage1.py"), f"--tasks={tmp_path / 'tasks'}"]
    process = subprocess.Popen(program)
    while not (tmp_path / "tasks" / "digits" / files.PROGRESS).exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert subprocess.run(program, check=False).returncode == 0
    done = run_program(RECIPES / "imagenet_stage1.py", *arguments)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "run" / "tables" / "paths.json").read_text())
    assert rows[-1]["top1"] > 0.3
    assert (tmp_path / "run" / "supernet.keras").is_file()
