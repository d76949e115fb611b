"""The ways to run a quarter of a stack compute the same, on both engines, or are not timed."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from programs import import_program

RECIPE = pathlib.Path(__file__).resolve().parents[2] / "recipes/benchmarks/benchmark_slicing.py"
# A block with a shortcut of its own, and one that adds its input.
TINY = ((2, 16, 2),)
SIZE = 32
ENGINES = ("TensorFlow", "LiteRT")
CHOOSING = ("masking", "indexing", "slicing_at_run_time")
METHODS = (*CHOOSING, "slicing", "individual")
benchmark = import_program("keras_dsnet_recipes.benchmarks.benchmark_slicing")


class StackOfOtherChannels(benchmark.ResNetStack):
    """Keeps as many channels as it should, but the next ones."""

    def choices(self, method):
        right = super().choices(method)
        if method == "masking":
            return {name: np.roll(mask, 1) for name, mask in right.items()}
        return {name: index + 1 for name, index in right.items()}


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).normal(size=(1, SIZE, SIZE, 3)).astype("float32")


@pytest.fixture
def stack():
    return benchmark.ResNetStack(TINY)


@pytest.mark.long
@pytest.mark.parametrize("engine", ENGINES)
def test_ways_to_run_a_quarter_agree(engine, stack, image):
    assert list(benchmark.prepare_runs(engine, stack, image, METHODS)) == list(METHODS)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", CHOOSING)
def test_other_channels_are_noticed(engine, method, image):
    with pytest.raises(ValueError, match=f"features of {method} on {engine} differ"):
        benchmark.prepare_runs(engine, StackOfOtherChannels(TINY), image, (method,))


def test_channels_that_are_not_masked_are_noticed(stack, image, monkeypatch):
    masks = stack.choices("masking")
    # Behind the last block: no kept channel changes, but others are there.
    masks["mask_64"][:] = 1
    monkeypatch.setattr(stack, "choices", lambda method: masks)
    with pytest.raises(ValueError, match="features of masking on TensorFlow differ"):
        benchmark.prepare_runs("TensorFlow", stack, image, ("masking",))


def test_other_weights_are_noticed(stack, image):
    kernel, _ = stack.narrow["block_2_spatial"]
    kernel.assign(kernel[..., ::-1])
    with pytest.raises(ValueError, match="features of slicing on TensorFlow differ"):
        benchmark.prepare_runs("TensorFlow", stack, image, ("slicing",))


def test_the_full_network_has_features_of_its_own(stack, image):
    full, individual = stack.full(image).numpy(), stack.individual(image).numpy()
    assert full.shape[-1] == benchmark.SHARE * individual.shape[-1]
    assert np.abs(full[:, : individual.shape[-1]] - individual).max() > 0.1 * individual.max()


def kernel_of_the_last_convolution(stack, method, image):
    graph = tf.function(getattr(stack, method)).get_concrete_function(
        image, **stack.choices(method)
    )
    convolutions = [op for op in graph.graph.get_operations() if op.type == "Conv2D"]
    return tuple(convolutions[-1].inputs[1].shape)


def test_masking_computes_all_channels_and_indexing_a_quarter(stack, image):
    assert kernel_of_the_last_convolution(stack, "masking", image) == (1, 1, 16, 64)
    for method in ("indexing", "slicing_at_run_time"):
        kernel = kernel_of_the_last_convolution(stack, method, image)
        assert kernel == (1, 1, 16 // benchmark.SHARE, 64 // benchmark.SHARE)


def test_the_stack_is_that_of_resnet_50():
    stem, blocks = benchmark.make_convolutions(benchmark.RESNET_50)
    convolutions = [stem, *(conv for block in blocks for conv in block if conv)]
    assert len(convolutions) == 53
    parameters = sum(c.kernel_size**2 * c.inputs * c.filters for c in convolutions)
    # torchvision's network without its classifier and its batch norms.
    assert parameters == 25_557_032 - 2_049_000 - 2 * sum(c.filters for c in convolutions)


def test_a_folder_that_is_a_file_is_told_at_once(tmp_path):
    (tmp_path / "file").touch()
    without_tensorflow = (
        "import runpy, sys; sys.modules['tensorflow'] = None; sys.argv = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    workdir = tmp_path / "file" / "run"
    done = subprocess.run(
        [sys.executable, "-c", without_tensorflow, str(RECIPE), f"--workdir={workdir}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"error: --workdir={workdir} is a file, or is inside one: name a folder\n"
    )
