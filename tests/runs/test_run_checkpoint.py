"""A checkpoint restores every bit, or nothing, and is saved at steps and ends of epochs."""

import contextlib
import errno
import os
import resource
import subprocess
import time

import keras
import numpy as np
import pytest
from programs import start_program

from keras_dsnet.runs.run_checkpoint import RunCheckpoint, SaveRunCheckpoint
from keras_dsnet.utils.atomic_file import temporary_path

_DTYPES = ("float32", "float16", "bfloat16", "float64", "int32", "int64", "uint32", "bool")

_SAVE_FOREVER = """
import sys
import keras
from keras_dsnet.runs.run_checkpoint import RunCheckpoint

checkpoint = RunCheckpoint(sys.argv[1])
model = [keras.Variable(keras.ops.zeros((1000, 1000)), name=f"v{i}") for i in range(8)]
step = 0
while True:
    step += 1
    for variable in model:
        variable.assign(keras.ops.full(variable.shape, step))
    checkpoint.save({"model": model}, step, {"step_again": step})
    print(step, flush=True)
"""


def variables(seed=0, size=3):
    rng = np.random.default_rng(seed)
    return [variable(rng.normal(size=(size, 2)), f"layer_{i}") for i in range(3)]


def variable(value, layer, name="kernel", dtype="float32"):
    with keras.name_scope(layer):
        return keras.Variable(value, name=name, dtype=dtype)


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def values(group):
    return [variable.numpy() for variable in group]


@pytest.fixture
def checkpoint(tmp_path):
    return RunCheckpoint(tmp_path / "checkpoint.npz")


@pytest.mark.parametrize("dtype", _DTYPES)
def test_every_dtype_comes_back_bit_for_bit(checkpoint, dtype):
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 2, (2, 3)) if dtype == "bool" else rng.uniform(0, 2**15, (2, 3))
    group = [
        keras.Variable(numbers.astype("float64"), dtype=dtype, name="matrix"),
        keras.Variable(1, dtype=dtype, name="scalar"),
        keras.Variable(np.zeros((0, 4)), dtype=dtype, name="empty"),
    ]
    before = values(group)
    checkpoint.save({"group": group}, step=1)
    for variable in group:
        variable.assign(keras.ops.zeros_like(variable))
    checkpoint.restore({"group": group})
    for variable, old in zip(group, before):
        new = values([variable])[0]
        assert variable.dtype == dtype
        assert new.dtype == old.dtype
        assert new.tobytes() == old.tobytes()


def test_step_and_meta_come_back(checkpoint):
    assert checkpoint.read_meta() is None
    assert checkpoint.restore({"model": variables()}) is None
    checkpoint.save({"model": variables()}, np.int64(7), {"seed": 3, "best": [0.5, None]})
    expected = {"seed": 3, "best": [0.5, None], "step": 7}
    assert checkpoint.read_meta() == expected
    assert RunCheckpoint(checkpoint.path).restore({"model": variables()}) == expected


def test_random_numbers_go_on_where_they_were(checkpoint):
    generator = keras.random.SeedGenerator(5)
    keras.random.uniform((2,), seed=generator)
    checkpoint.save({"random": [generator.state]}, step=1)
    expected = np.asarray(keras.random.uniform((2,), seed=generator))
    other = keras.random.SeedGenerator(0)
    checkpoint.restore({"random": [other.state]})
    np.testing.assert_array_equal(keras.random.uniform((2,), seed=other), expected)


def test_training_goes_on_as_if_never_stopped(checkpoint):
    def make():
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
        model.compile(
            keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True), "mse", run_eagerly=True
        )
        model.optimizer.build(model.trainable_variables)
        return model, {"model": model.variables, "optimizer": model.optimizer.variables}

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 4)), rng.normal(size=(8, 2))
    model, groups = make()
    for _ in range(2):
        model.train_on_batch(x, y)
    checkpoint.save(groups, step=2)
    model.train_on_batch(x, y)
    # Keras gives the same layers other names the second time.
    resumed, resumed_groups = make()
    assert resumed.layers[0].name != model.layers[0].name
    checkpoint.restore(resumed_groups)
    assert int(resumed.optimizer.iterations) == 2
    resumed.train_on_batch(x, y)
    for name, group in groups.items():
        for one, other in zip(values(group), values(resumed_groups[name])):
            np.testing.assert_array_equal(one, other)


def test_numpy_reads_the_file(checkpoint):
    group = variables()
    checkpoint.save({"model": group}, step=1)
    with np.load(checkpoint.path) as archive:
        np.testing.assert_array_equal(archive["model/1"], values(group)[1])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: {"model": variables(size=4)}, r"variable 0 of 'model'.*\(3, 2\) there.*\(4, 2\)"),
        (lambda: {"model": variables()[:2]}, "'model' has 3 variables there, 2 here"),
        (lambda: {"model": variables()[::-1]}, None),
        (lambda: {"teacher": variables()}, "holds 'model', and this run has 'teacher'"),
        (
            lambda: {"model": [variable(v, "layer_0", dtype="float16") for v in variables()]},
            "float32 .* there, .*float16",
        ),
        (
            lambda: {"model": [variable(v, "layer_0", "bias") for v in variables()]},
            "'layer_0/kernel'.* there, 'layer_0/bias'",
        ),
    ],
    ids=["shape", "count", "numbering", "groups", "dtype", "name"],
)
def test_variables_of_another_run_are_refused(checkpoint, other, message):
    checkpoint.save({"model": variables()}, step=1)
    groups = other()
    before = values(next(iter(groups.values())))
    if message is None:
        # Keras counts the numbers in names, so only the order of the variables matters.
        checkpoint.restore(groups)
        for new, saved in zip(values(groups["model"]), values(variables()), strict=True):
            np.testing.assert_array_equal(new, saved)
        return
    with pytest.raises(ValueError, match=message) as caught:
        checkpoint.restore(groups)
    assert str(checkpoint.path) in str(caught.value)
    assert "\n" not in str(caught.value)
    for old, new in zip(before, values(next(iter(groups.values())))):
        np.testing.assert_array_equal(old, new)


def test_a_mismatch_in_the_last_variable_leaves_the_first_alone(checkpoint):
    checkpoint.save({"model": variables(0)}, step=1)
    group = variables(1)
    group[-1] = variable(np.zeros((9, 9)), "layer_2")
    before = values(group)
    with pytest.raises(ValueError, match="variable 2"):
        checkpoint.restore({"model": group})
    np.testing.assert_array_equal(values(group)[0], before[0])


@pytest.mark.parametrize("content", [b"", b"text, no archive", b"PK\x03\x04half an archive"])
def test_a_file_of_another_kind_is_refused(checkpoint, content):
    checkpoint.path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{checkpoint.path} is damaged"):
        checkpoint.restore({"model": variables()})
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.read_meta()


def test_a_cut_file_is_refused(checkpoint):
    checkpoint.save({"model": variables()}, step=1)
    content = checkpoint.path.read_bytes()
    for size in range(0, len(content), 97):
        checkpoint.path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="damaged"):
            checkpoint.restore({"model": variables()})


def test_a_flipped_bit_never_gives_other_values(checkpoint):
    group = variables()
    checkpoint.save({"model": group}, step=1)
    content, good = checkpoint.path.read_bytes(), values(group)
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        checkpoint.path.write_bytes(damaged)
        # Some bits have no meaning, such as those of a date inside the archive.
        with contextlib.suppress(ValueError):
            assert checkpoint.restore({"model": group}) == {"step": 1}
        for old, new in zip(good, values(group)):
            np.testing.assert_array_equal(old, new)


def test_a_checkpoint_of_a_later_format_is_refused(checkpoint, monkeypatch):
    monkeypatch.setattr("keras_dsnet.runs.run_checkpoint._FORMAT", 99)
    checkpoint.save({"model": variables()}, step=1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format is 99"):
        checkpoint.restore({"model": variables()})
    with pytest.raises(ValueError, match="format is 99"):
        checkpoint.read_meta()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_diverged_state_does_not_replace_a_good_one(checkpoint, value, dtype):
    group = [keras.Variable([1.0, 2.0], dtype=dtype, name="kernel")]
    checkpoint.save({"model": group}, step=1)
    group[0].assign([1.0, value])
    with pytest.raises(ValueError, match=r"step 2 is not saved.*kernel.*'model'.*diverged"):
        checkpoint.save({"model": group}, step=2)
    assert checkpoint.restore({"model": group}) == {"step": 1}
    np.testing.assert_array_equal(values(group)[0].astype("float32"), [1, 2])


@contextlib.contextmanager
def small_files():
    """Limits files to 4 KiB, so that a longer write fails half-way, as on a full disk.

    For as short as can be: what pytest itself prints may go to a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_midway_keeps_the_last_state(checkpoint):
    group = variables(size=1000)
    checkpoint.save({"model": group}, step=1)
    failure = r"step 2.*checkpoint\.npz.*the last checkpoint is unchanged"
    with pytest.raises(OSError, match=failure), small_files():
        checkpoint.save({"model": group}, step=2)
    assert names_in(checkpoint.path.parent) == ["checkpoint.npz"]
    assert checkpoint.restore({"model": group}) == {"step": 1}


def test_a_full_disk_says_so_in_one_line(checkpoint, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left on device; there is none yet") as caught:
        checkpoint.save({"model": variables()}, step=5)
    assert caught.value.errno == errno.ENOSPC
    assert "\n" not in caught.value.strerror
    assert names_in(checkpoint.path.parent) == []


def test_a_start_removes_what_a_killed_save_left(checkpoint, monkeypatch):
    checkpoint.save({"model": variables()}, step=1)
    ended = subprocess.Popen(["true"])
    ended.wait()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: ended.pid)
        temporary_path(checkpoint.path).write_bytes(b"half")
    assert RunCheckpoint(checkpoint.path).read_meta() == {"step": 1}
    assert names_in(checkpoint.path.parent) == ["checkpoint.npz"]


@pytest.mark.slow
def test_a_killed_save_leaves_a_whole_checkpoint(tmp_path, tmp_path_factory):
    path, folder = tmp_path / "checkpoint.npz", tmp_path_factory.mktemp("program")
    (folder / "program.py").write_text(_SAVE_FOREVER)
    process = start_program(folder / "program.py", path, folder=folder)
    try:
        _wait_for(folder, len("1\n2\n3\n"), "stdout")
        _wait_for(tmp_path, 10_000_000, "partial-*-checkpoint.npz")
    finally:
        process.kill()
        process.join()
    done = int((folder / "stdout").read_text().split()[-1])
    model = [keras.Variable(keras.ops.zeros((1000, 1000)), name=f"v{i}") for i in range(8)]
    meta = RunCheckpoint(path).restore({"model": model})
    assert meta["step"] >= done
    assert meta["step_again"] == meta["step"]
    for variable in values(model):
        assert (variable == meta["step"]).all()
    assert names_in(tmp_path) == ["checkpoint.npz"]


def _wait_for(folder, size, pattern):
    """Waits until a file in a folder has this number of bytes on the disk."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        # It may be renamed between the two calls.
        with contextlib.suppress(FileNotFoundError):
            if any(path.stat().st_size >= size for path in folder.glob(pattern)):
                return
    raise AssertionError(f"{pattern} did not appear in {folder}")


class RecordingCheckpoint:
    def __init__(self):
        self.saved = []

    def save(self, variables, step, meta):
        self.saved.append((step, variables, meta))

    @property
    def steps(self):
        return [step for step, _, _ in self.saved]


def run_epoch(callback, epoch, steps):
    callback.on_epoch_begin(epoch)
    for batch in range(steps):
        callback.on_train_batch_end(batch, {"loss": 1.0})
    callback.on_epoch_end(epoch, {})


def make(every_steps, start_step=0, meta=None):
    return SaveRunCheckpoint(RecordingCheckpoint(), every_steps, lambda: "groups", meta, start_step)


def test_saves_every_so_many_global_steps_and_at_the_ends_of_epochs():
    callback = make(every_steps=4)
    for epoch in range(2):
        run_epoch(callback, epoch, steps=10)
    callback.on_train_end()
    assert callback.checkpoint.steps == [4, 8, 10, 12, 16, 20]


def test_a_resumed_run_saves_at_the_same_steps():
    callback = make(every_steps=4, start_step=6)
    run_epoch(callback, 0, steps=4)
    run_epoch(callback, 1, steps=10)
    assert callback.checkpoint.steps == [8, 10, 12, 16, 20]


def test_without_a_number_of_steps_only_the_ends_of_epochs_are_saved():
    callback = make(every_steps=None)
    run_epoch(callback, 0, steps=10)
    assert callback.checkpoint.steps == [10]


def test_the_end_of_a_run_within_an_epoch_is_saved_once():
    callback = make(every_steps=100)
    callback.on_epoch_begin(0)
    callback.on_train_batch_end(0, {})
    callback.on_train_end()
    callback.on_train_end()
    assert callback.checkpoint.steps == [1]


def test_a_run_that_did_nothing_saves_nothing():
    callback = make(every_steps=1, start_step=5)
    callback.on_train_end()
    assert callback.checkpoint.steps == []


def test_variables_and_meta_are_those_of_the_moment():
    count = iter(range(10))
    callback = make(every_steps=2, meta=lambda: {"call": next(count)})
    run_epoch(callback, 0, steps=4)
    assert callback.checkpoint.saved == [(2, "groups", {"call": 0}), (4, "groups", {"call": 1})]


@pytest.mark.parametrize("every_steps", [0, -1])
def test_a_wrong_number_of_steps_is_refused(every_steps):
    with pytest.raises(ValueError, match=f"every_steps.*1 or more. Received: {every_steps}"):
        make(every_steps)


def test_a_diverging_run_keeps_its_last_good_state(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    checkpoint = RunCheckpoint(tmp_path / "checkpoint.npz")
    callback = SaveRunCheckpoint(checkpoint, 1, lambda: {"model": model.variables})
    x = np.ones((8, 2), "float32")
    x[6] = np.inf
    with pytest.raises(ValueError, match=r"step 4 is not saved.*diverged"):
        model.fit(x, x[:, :1], batch_size=2, shuffle=False, verbose=0, callbacks=[callback])
    assert checkpoint.restore({"model": model.variables}) == {"step": 3}
    assert all(np.isfinite(variable.numpy()).all() for variable in model.variables)
