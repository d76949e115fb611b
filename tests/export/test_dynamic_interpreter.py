"""The runtime of a routed file: alone, bounded, within a budget, and where things do not fit."""

import concurrent.futures
import json
import subprocess
import sys

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from exported import Exported
from keras_dsnet.applications.ds_mobilenet import preprocess_input
from routed_networks import SIZE, random_images, small_network

from keras_dsnet.export import DynamicInterpreter, LatencyTable, best_path
from keras_dsnet.export.dynamic_interpreter import read_metadata
from keras_dsnet.export.metadata import add_metadata
from keras_dsnet.export.packing import pack
from keras_dsnet.export.tflite_model import parse

ROUTES = (0, 2, 3)
IMAGES = random_images(24)
PIXELS = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), "uint8")

# Started by itself; what it imports beside numpy and ai_edge_litert ends it.
ALONE = """
import importlib.util, json, sys, time

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "keras", "keras_dsnet"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
import numpy as np
import ai_edge_litert.interpreter, ai_edge_litert.schema_py_generated

start = time.process_time()
spec = importlib.util.spec_from_file_location("dynamic_interpreter", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
interpreter = module.DynamicInterpreter(sys.argv[2])
seconds = time.process_time() - start
results = [interpreter.run(image) for image in np.load(sys.argv[3])]
print(json.dumps([seconds, [(output.tolist(), path) for output, path in results]]))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    options = {"routes": ROUTES, "verbose": False}
    return Exported(small_network(), tmp_path_factory.mktemp("float"), **options)


@pytest.fixture(scope="module")
def raw_filename(tmp_path_factory):
    """A file that takes raw pixels, of the same network."""
    options = {"routes": (2,), "input_type": "uint8", "verbose": False}
    return Exported(small_network(), tmp_path_factory.mktemp("raw"), **options).filename


@pytest.fixture
def interpreter(exported):
    return DynamicInterpreter(exported.filename)


@pytest.fixture
def timed(interpreter):
    """An interpreter with latencies as if measured."""
    interpreter.latency_ms = {0: 1.0, 2: 2.0, 3: 4.0}
    return interpreter


@pytest.mark.slow
def test_it_runs_without_tensorflow_keras_and_this_package(exported, repository, tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    module = repository / "keras_dsnet/export/dynamic_interpreter.py"
    command = [sys.executable, "-c", ALONE, module, exported.filename, tmp_path / "images.npy"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seconds, results = json.loads(done.stdout)
    # Beyond importing the interpreter itself.
    assert seconds < 0.3
    outputs, widths = exported.choose(IMAGES)
    assert [path for _, path in results] == [[width] for width in widths]
    np.testing.assert_allclose([output for output, _ in results], outputs, atol=1e-6)


def test_a_run_gives_the_outputs_of_the_route_that_the_gate_chose(interpreter, exported):
    exported.network.routes = ROUTES
    expected = exported.network.route(IMAGES).numpy()
    assert set(expected[:, 0]) == set(ROUTES)
    for image, own in zip(IMAGES, expected):
        output, path = interpreter.run(image)
        assert path == tuple(own)
        assert isinstance(path[0], int)
        assert (output.shape, output.dtype) == ((5,), np.float32)
        single = exported.network(image[None], path=path)[0]
        np.testing.assert_allclose(output, single, atol=1e-5)


def test_an_image_may_have_a_leading_one(interpreter):
    plain, batch = interpreter.run(IMAGES[0]), interpreter.run(IMAGES[:1])
    np.testing.assert_array_equal(plain[0], batch[0])


@pytest.mark.parametrize(
    ("bounds", "allowed"),
    [
        ({"min_width": 2, "max_width": 2}, {2}),
        ({"min_width": (3,), "max_width": [3]}, {3}),
        ({"max_width": np.int64(0)}, {0}),
        ({"max_width": 2}, {0, 2}),
        ({"min_width": 2}, {2, 3}),
        ({"min_width": 1, "max_width": 1}, {2}),
        ({"min_width": 3, "max_width": 0}, {3}),
    ],
)
def test_bounds_hold_for_every_image(interpreter, bounds, allowed):
    assert {interpreter.run(image, **bounds)[1][0] for image in IMAGES} == allowed


def test_raw_pixels_are_normalised_as_in_training(interpreter):
    output, path = interpreter.run(PIXELS)
    expected, expected_path = interpreter.run(preprocess_input(PIXELS))
    assert path == expected_path
    np.testing.assert_allclose(output, expected, atol=1e-6)


@pytest.mark.slow
def test_a_file_that_takes_pixels_gives_what_one_of_floats_gives(interpreter, raw_filename):
    raw = DynamicInterpreter(raw_filename)
    assert (raw.routes, raw.metadata["input_type"]) == ((2,), "uint8")
    assert raw.metadata["preprocessing"]["in_file"]
    output, path = raw.run(PIXELS)
    assert path == (2,)
    np.testing.assert_allclose(output, interpreter.run(PIXELS, 2, 2)[0], atol=1e-5)
    with pytest.raises(ValueError, match=r"takes raw uint8 pixels.*float32"):
        raw.run(IMAGES[0])


def test_metadata_say_what_the_file_is(interpreter, exported):
    metadata = dict(interpreter.metadata)
    preprocessing = metadata.pop("preprocessing")
    assert metadata == {
        "format": 1,
        "network": exported.network.name,
        "input_shape": [SIZE, SIZE, 3],
        "input_type": "float32",
        "class_names": None,
        "oldest_runtime": {"tensorflow": "2.14.0", "litert": "1.0.1"},
        "quantize": None,
        "layout": "shared",
        "num_widths": 4,
        "gates_trained": True,
        "routes": [
            {
                "path": [route],
                "madds": exported.network.madds(route),
                "cuts": [list(exported.cuts[route])],
            }
            for route in ROUTES
        ],
    }
    assert (preprocessing["in_file"], preprocessing["channels"]) == (False, "RGB")
    np.testing.assert_allclose(
        interpreter.preprocess(PIXELS), preprocess_input(PIXELS), rtol=0, atol=1e-6
    )
    assert (interpreter.routes, interpreter.num_gates) == (ROUTES, 1)


def test_calibration_times_every_route_by_forcing_it(interpreter, monkeypatch):
    turns = []
    run = interpreter._run_image

    def noted(image, **bounds):
        turns.append((bounds["min_width"], bounds["max_width"], run(image, **bounds)[1][0]))

    monkeypatch.setattr(interpreter, "_run_image", noted)
    latency = interpreter.calibrate_latency(rounds=2, runs=2)
    assert latency is interpreter.latency_ms
    assert list(latency) == list(ROUTES)
    assert all(0 < milliseconds < 1000 for milliseconds in latency.values())
    # The routes alternate; the first round warms up.
    assert turns == [(route,) * 3 for _ in range(3) for route in ROUTES for _ in range(2)]


def test_what_was_measured_chooses_a_path(interpreter, exported):
    measured = interpreter.calibrate_latency(rounds=1, runs=1)
    for table in (interpreter, measured):
        assert best_path(exported.network, max_latency_ms=1e6, latency_table=table) == 3
    least = min(measured, key=measured.get)
    with pytest.warns(UserWarning, match="No path fits"):
        assert best_path(exported.network, max_latency_ms=1e-6, latency_table=measured) == least
    assert LatencyTable.from_interpreter(interpreter).layout == "shared"


@pytest.mark.parametrize(
    ("budget_ms", "allowed"), [(1.0, {0}), (1.9, {0}), (2.5, {0, 2}), (9, {0, 2, 3})]
)
def test_a_budget_bounds_the_width(timed, budget_ms, allowed):
    assert {timed.run(image, budget_ms=budget_ms)[1][0] for image in IMAGES} == allowed


def test_a_budget_that_nothing_fits_takes_the_fastest_route_with_a_warning(timed):
    for image in IMAGES:
        with pytest.warns(UserWarning, match=r"fastest, 0, .* 1\.00 ms\. Received: budget_ms=0\.5"):
            assert timed.run(image, budget_ms=0.5)[1] == (0,)


def test_a_budget_holds_where_a_narrower_route_measured_slower(interpreter, monkeypatch):
    def paths(latencies, **options):
        monkeypatch.setattr(interpreter, "latency_ms", dict(zip(ROUTES, latencies, strict=True)))
        return {interpreter.run(image, **options)[1][0] for image in IMAGES}

    assert paths((1.0, 5.0, 4.0), budget_ms=4.5) == {0}
    assert paths((1.0, 5.0, 4.0), budget_ms=4.5, min_width=3) == {3}
    assert paths((2.0, 1.0, 4.0), budget_ms=2.5) == {0, 2}
    assert paths((2.0, 1.0, 4.0), budget_ms=1.5) == {2}
    with pytest.warns(UserWarning, match=r"fastest, 2, .* 1\.00 ms"):
        assert paths((2.0, 1.0, 4.0), budget_ms=0.5) == {2}
    # Route 2 fits, and may not run.
    with pytest.warns(UserWarning, match=r"fastest, 0, .* 2\.00 ms"):
        assert paths((2.0, 1.0, 4.0), budget_ms=1.5, max_width=0) == {0}


def test_a_budget_and_a_bound_both_hold(timed):
    assert {timed.run(image, max_width=2, budget_ms=9)[1][0] for image in IMAGES} == {0, 2}
    assert {timed.run(image, max_width=3, budget_ms=2)[1][0] for image in IMAGES} == {0, 2}
    assert {timed.run(image, min_width=2, budget_ms=2)[1][0] for image in IMAGES} == {2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget_ms": float("nan")}, "must be a positive number.*budget_ms=nan"),
        ({"budget_ms": True}, "must be a positive number.*budget_ms=True"),
        ({"budget_ms": 0}, "must be a positive number.*budget_ms=0"),
        ({"budget_ms": -1}, "must be a positive number.*budget_ms=-1"),
        (
            {"budget_ms": "5"},
            "must be a positive number of milliseconds.*budget_ms='5'",
        ),
        ({"budget_ms": 0.5, "min_width": 2}, r"No route from min_width=2 on takes 0\.5 ms or less"),
        ({"budget_ms": 2.5, "min_width": 3}, r"at most 2, .* 2\.5 ms.*min_width=3"),
        ({"min_width": -1}, "`min_width` must be a width, 0 to 3.*min_width=-1"),
        ({"max_width": 4}, "`max_width` must be a width, 0 to 3.*max_width=4"),
        ({"max_width": 2**40}, "max_width=1099511627776"),
        ({"min_width": 1.5}, "min_width=1.5"),
        ({"min_width": (0, 1)}, r"each of 1 gates.*min_width=\(0, 1\)"),
        ({"min_width": ()}, r"min_width=\(\)"),
        ({"max_width": "widest"}, "max_width='widest'"),
    ],
)
def test_bounds_and_budgets_that_do_not_fit_are_one_clear_line(timed, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        timed.run(IMAGES[0], **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (IMAGES[:2], r"shape \(16, 16, 3\).*image.shape=\(2, 16, 16, 3\)"),
        (IMAGES[0, :8], r"image.shape=\(8, 16, 3\)"),
        (IMAGES[0, ..., 0], r"image.shape=\(16, 16\)"),
        (PIXELS.astype("int32"), "raw uint8 pixels or preprocessed floats.*int32"),
        (PIXELS.astype("float32"), r"floats normalised to about -2\.6 to 2\.6.*from 0 to 255"),
        (np.full((SIZE, SIZE, 3), np.nan), "must have finite values"),
        (np.full((SIZE, SIZE, 3), np.inf), "must have finite values"),
        (PIXELS > 128, "preprocessed floats.*bool"),
    ],
)
def test_an_image_that_does_not_fit_is_one_clear_line(interpreter, image, message):
    with pytest.raises(ValueError, match=message):
        interpreter.run(image)


def test_a_budget_needs_latencies_that_were_measured(interpreter):
    with pytest.raises(ValueError, match=r"calibrate_latency\(\)` first"):
        interpreter.run(IMAGES[0], budget_ms=5.0)


@pytest.mark.parametrize(
    ("options", "received"),
    [({"rounds": 0}, "rounds=0"), ({"rounds": 1.5}, r"rounds=1\.5"), ({"runs": "3"}, "runs='3'")],
)
def test_a_wrong_number_of_runs_is_one_clear_line(interpreter, options, received):
    with pytest.raises(ValueError, match=f"` must be an int of at least 1. Received: {received}$"):
        interpreter.calibrate_latency(**options)


@pytest.mark.parametrize("num_threads", [0, -1, "a", 1.5, None, True])
def test_a_wrong_number_of_threads_is_not_taken_for_a_damaged_file(exported, num_threads):
    with pytest.raises(ValueError, match=r"^`num_threads` must be an int of at least 1") as caught:
        DynamicInterpreter(exported.filename, num_threads=num_threads)
    assert str(caught.value).endswith(f"Received: num_threads={num_threads!r}")


def test_what_is_no_name_of_a_file_is_one_line(exported):
    for filename in (None, 7, exported.content):
        with pytest.raises(ValueError, match="`filename` must be the path of a TFLite file"):
            DynamicInterpreter(filename)
    with pytest.raises(ValueError, match=r"at most 1024.*num_threads=1099511627776"):
        DynamicInterpreter(exported.filename, num_threads=2**40)


def test_threads_may_share_an_interpreter(interpreter):
    expected = [interpreter.run(image) for image in IMAGES]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, own in zip(pool.map(interpreter.run, IMAGES), expected, strict=True):
                assert found[1] == own[1]
                np.testing.assert_array_equal(found[0], own[0])


def test_a_number_of_threads_may_be_numpys(exported):
    assert DynamicInterpreter(exported.filename, num_threads=np.int64(2)).num_threads == 2


def test_a_file_that_is_not_a_routed_one_is_named(exported, tmp_path):
    filename = tmp_path / "other.tflite"
    with pytest.raises(FileNotFoundError, match=r"other\.tflite"):
        DynamicInterpreter(filename)
    filename.write_text("no model")
    with pytest.raises(ValueError, match=r"other\.tflite is not a TFLite file"):
        DynamicInterpreter(filename)
    plain = parse(exported.content)
    plain.metadata = []
    filename.write_bytes(pack(plain))
    with pytest.raises(ValueError, match=r"other\.tflite is a TFLite file without routes"):
        DynamicInterpreter(filename)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"format": 1}', b'{"format": 2}'])
def test_a_file_of_another_version_is_named(exported, tmp_path, text):
    model = parse(exported.content)
    add_metadata(model, "keras_dsnet", text or b" ")
    filename = tmp_path / "other.tflite"
    filename.write_bytes(pack(model))
    with pytest.raises(
        ValueError, match=r"other\.tflite is (damaged|of another version)"
    ) as caught:
        DynamicInterpreter(filename)
    assert "\n" not in str(caught.value)


def raiser(error):
    def fail(*_):
        raise error

    return fail


def test_a_file_with_a_wrong_byte_is_read_or_named(exported):
    generator = np.random.default_rng(0)
    damaged = 0
    for place in generator.integers(0, len(exported.content), 400):
        content = bytearray(exported.content)
        content[place] ^= int(generator.integers(1, 256))
        try:
            read_metadata(bytes(content))
        except ValueError:
            damaged += 1
    for error in (TypeError, AttributeError, IndexError):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(schema.Model, "GetRootAsModel", raiser(error("a wrong offset")))
            with pytest.raises(ValueError, match="the file is damaged: a wrong offset"):
                read_metadata(exported.content)
    assert damaged


@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_named(exported, tmp_path, share):
    filename = tmp_path / "half.tflite"
    filename.write_bytes(exported.content[: int(share * len(exported.content))])
    with pytest.raises(ValueError, match=r"half\.tflite is damaged"):
        DynamicInterpreter(filename)
