"""The choice of a path for a budget, and the latency tables that it reads."""

import json
import types

import numpy as np
import pytest
from tiny_mobilenet import TINY_SPEC

from keras_dsnet.export import LatencyTable, best_path, path_selection
from keras_dsnet.models import DynamicSlimmableNetwork
from keras_dsnet.models.path import resolve_path
from keras_dsnet.runs.table import write_table
from keras_dsnet.training import evaluation
from keras_dsnet.utils import UserError

SHAPE = (64, 48, 3)


def make_network(spec=TINY_SPEC, **options):
    options = {"input_shape": SHAPE, "classes": 10, "name": "tiny", **options}
    return DynamicSlimmableNetwork(spec, **options)


def make_table(network, times, **fields):
    """A table of `times`, a dict from path to its median in ms; the least is a tenth less."""
    rows = [
        {
            "path": list(path) if isinstance(path, tuple) else [path],
            "madds": network.madds(path, SHAPE),
            "min_ms": 0.9 * median,
            "median_ms": median,
        }
        for path, median in times.items()
    ]
    fields = {
        "device": "a phone",
        "engine": "LiteRT 2.3.0, XNNPACK",
        "threads": 1,
        "network": "tiny",
        "input_shape": SHAPE,
        "num_widths": network.num_widths,
        "quantize": "int8",
        "layout": "shared",
        "rows": rows,
        **fields,
    }
    return LatencyTable(**fields)


@pytest.fixture(scope="module")
def network():
    return make_network(routes=(0, 4, 8, 13))


@pytest.fixture(scope="module")
def table(network):
    return make_table(network, {0: 2.0, 5: 3.5, 13: 9.0})


def test_a_saved_table_is_read_back_equal(table, tmp_path):
    table.save(tmp_path / "phone.json")
    assert LatencyTable.load(tmp_path / "phone.json") == table
    assert [path.name for path in tmp_path.iterdir()] == ["phone.json"]


def test_the_file_says_what_was_timed_and_how(table, network, tmp_path):
    table.save(tmp_path / "phone.json")
    fields = json.loads((tmp_path / "phone.json").read_text())
    assert fields.pop("rows")[1] == {
        "path": [5],
        "madds": network.madds(5),
        "min_ms": pytest.approx(3.15),
        "median_ms": 3.5,
    }
    assert fields == {
        "format": 1,
        "device": "a phone",
        "engine": "LiteRT 2.3.0, XNNPACK",
        "threads": 1,
        "network": "tiny",
        "input_shape": list(SHAPE),
        "num_widths": 14,
        "quantize": "int8",
        "layout": "shared",
    }


def test_the_latency_of_a_path_is_its_median(table):
    assert table.latency_ms(5) == table.latency_ms((5,)) == 3.5
    with pytest.raises(KeyError, match="no latency was measured of path 4 on a phone"):
        table.latency_ms(4)


def test_a_table_belongs_to_networks_of_its_widths_and_cost(table, network):
    table.check(network)
    with pytest.raises(ValueError, match=r"of 'tiny' on a phone is of another network.*path \[0\]"):
        table.check(make_network(TINY_SPEC.scaled(alpha=2)))
    with pytest.raises(ValueError, match=r"are \(1, 20\). Received: a model of \(1, 14\)"):
        make_table(network, {0: 2.0}, num_widths=20).check(network)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threads": 0}, "`threads` must be a positive int. Received: threads=0"),
        ({"device": ""}, "`device` must be a name"),
        ({"layout": 3}, "`layout` must be a name or None. Received: layout=3"),
        ({"input_shape": [224, 224]}, r"`input_shape` must be \(height, width, channels\)"),
        ({"rows": []}, "`rows` must be a list"),
        ({"rows": [{"path": [0]}]}, "A row must have path, madds, min_ms, median_ms"),
        ({"format": 2}, "has format 2; this version reads 1"),
        ({"cores": 8}, "has unknown cores"),
        ({"engine": None}, "`engine` must be a name"),
    ],
)
def test_a_wrong_field_is_one_line_with_the_name_of_the_file(table, tmp_path, change, message):
    table.save(tmp_path / "phone.json")
    fields = {**json.loads((tmp_path / "phone.json").read_text()), **change}
    (tmp_path / "phone.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=message) as error:
        LatencyTable.load(tmp_path / "phone.json")
    assert str(tmp_path / "phone.json") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_ms": -1.0}, r"positive milliseconds.*path=\[0\], min_ms=-1.0, median_ms=2.0"),
        ({"min_ms": 2.5}, "the least no more than the median"),
        ({"median_ms": float("nan")}, "positive milliseconds"),
        ({"median_ms": "2 ms"}, "positive milliseconds"),
        ({"path": [14]}, "widths from 0 to 13"),
        ({"path": 0}, "one per gate. Received: path=0"),
        ({"path": [0, 1]}, "Every path needs as many widths"),
        ({"path": [5]}, r"The path \[5\] has two rows"),
        ({"madds": 0}, "`madds` must be a positive int"),
    ],
)
def test_a_row_that_no_benchmark_gives_is_refused(network, table, change, message):
    rows = [{**table.rows[0], **change}, *table.rows[1:]]
    with pytest.raises(ValueError, match=message):
        make_table(network, {}, rows=rows)


def test_what_is_no_table_is_refused(tmp_path):
    file = tmp_path / "phone.json"
    file.write_text("5 ms")
    with pytest.raises(UserError, match=r"latency table .*phone.json is not JSON"):
        LatencyTable.load(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not JSON"):
        LatencyTable.load(file)
    file.write_text('[{"path": 0, "top1": 0.7}]')
    with pytest.raises(UserError, match=r"must be a JSON object.*a list"):
        LatencyTable.load(file)
    with pytest.raises(FileNotFoundError):
        LatencyTable.load(tmp_path / "none.json")


@pytest.mark.parametrize("text", ["null", "7", '"phone"', "{}", "[" * 100000])
def test_other_json_is_one_line_with_the_name_of_the_file(tmp_path, text):
    (tmp_path / "phone.json").write_text(text)
    with pytest.raises(UserError, match=r"latency table .*phone\.json") as error:
        LatencyTable.load(tmp_path / "phone.json")
    assert "\n" not in str(error.value)


class Interpreter:
    """What a table asks of a `DynamicInterpreter`."""

    num_gates, num_threads, runtime = 1, 2, "interpreter"

    def __init__(self, network, latency_ms):
        self.latency_ms = latency_ms
        self.metadata = {
            "network": network.name,
            "input_shape": list(SHAPE),
            "num_widths": network.num_widths,
            "quantize": "int8",
            "layout": "fast",
            "routes": [{"path": [r], "madds": network.madds(r)} for r in latency_ms],
        }


def test_what_an_interpreter_has_measured_is_a_table_with_the_files_layout(network):
    table = LatencyTable.from_interpreter(Interpreter(network, {0: 2.0, 5: 3.5}), "a phone")
    table.check(network)
    assert (table.layout, table.quantize, table.threads) == ("fast", "int8", 2)
    assert (table.device, table.latency_ms(5)) == ("a phone", 3.5)
    assert table.runtime == "LiteRT"
    compiled = Interpreter(network, {0: 2.0})
    compiled.runtime = "compiled"
    assert LatencyTable.from_interpreter(compiled).runtime == "LiteRT CompiledModel"
    with pytest.raises(ValueError, match=r"call `calibrate_latency\(\)` first"):
        LatencyTable.from_interpreter(Interpreter(network, {}))


class TwoGates:
    """What `best_path` asks of a network, here one of two gates."""

    num_gates, num_widths, routes = 2, 4, (0, 1, 3)

    def resolve_path(self, path):
        return resolve_path(path, 2, 4)

    def madds(self, path, input_shape=None):
        first, second = self.resolve_path(path).gates if isinstance(path, int) else path
        return 1000 + 100 * first + 90 * second


def test_without_accuracies_the_most_madds_that_fit(network):
    assert best_path(network, max_madds=network.madds(8)) == 8
    assert best_path(network, max_madds=network.madds(8) - 1) == 7
    assert best_path(network, max_madds=1e9) == 13


def test_the_budget_in_milliseconds_is_of_the_median(network):
    table = make_table(network, {0: 2.0, 4: 3.0, 8: 5.0, 13: 9.0})
    assert best_path(network, max_latency_ms=5, latency_table=table) == 8
    assert best_path(network, max_latency_ms=4.9, latency_table=table) == 4


def test_a_wider_path_that_is_faster_is_taken(network):
    table = make_table(network, {0: 2.0, 4: 6.0, 8: 4.0, 13: 9.0})
    assert best_path(network, max_latency_ms=5, latency_table=table) == 8


def test_both_limits_must_hold(network):
    table = make_table(network, {0: 2.0, 4: 3.0, 8: 5.0, 13: 9.0})
    limits = {"max_latency_ms": 5, "latency_table": table}
    assert best_path(network, max_madds=network.madds(4), **limits) == 4
    assert best_path(network, max_madds=network.madds(13), **limits) == 8


def test_all_widths_that_were_timed_count_and_not_the_routes_only(network):
    table = make_table(network, {0: 2.0, 4: 3.0, 6: 4.0})
    assert best_path(network, max_latency_ms=100, latency_table=table) == 6
    assert best_path(network, max_madds=network.madds(6)) == 6


def test_what_an_interpreter_has_measured_is_taken(network):
    measured = {0: 2.0, 4: 3.0, 8: 5.0}
    assert best_path(network, max_latency_ms=4, latency_table=measured) == 4
    assert best_path(network, max_latency_ms=4, latency_table=Interpreter(network, measured)) == 4
    assert best_path(TwoGates(), max_latency_ms=4, latency_table={0: 2.0, 1: 3.0}) == (1, 1)
    from_json = json.loads(json.dumps(measured))
    assert best_path(network, max_latency_ms=4, latency_table=from_json) == 4


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, r"call `calibrate_latency\(\)`"),
        ({0: 0.0}, "positive number of milliseconds.*0.0 for path 0"),
        ({0: "3 ms"}, "positive number of milliseconds"),
        ({14: 3.0}, "another network: `path` must be an int from 0 to 13"),
        (7, "must be a LatencyTable or its file.*latency_table=7"),
    ],
)
def test_latencies_that_do_not_fit_are_one_line(network, table, message):
    with pytest.raises(ValueError, match=message) as error:
        best_path(network, max_latency_ms=5, latency_table=table)
    assert "\n" not in str(error.value)


BROWSER = "LiteRT.js 2.5.3, XNNPACK, WebAssembly"


@pytest.mark.parametrize(
    ("engine", "runtime"),
    [
        ("LiteRT 2.3.0, XNNPACK", "LiteRT"),
        (BROWSER, "LiteRT.js"),
        ("LiteRT", "LiteRT"),
        ("LiteRT CompiledModel 2.3.0, XNNPACK", "LiteRT CompiledModel"),
        ("TensorFlow Lite v2.17, CPU", "TensorFlow Lite"),
        ("ONNX Runtime, CPU", "ONNX Runtime"),
    ],
)
def test_a_table_names_its_runtime(network, engine, runtime):
    assert make_table(network, {0: 2.0}, engine=engine).runtime == runtime


def test_a_table_of_another_runtime_is_refused_unless_asked_for(network, tmp_path):
    make_table(network, {0: 2.0, 4: 3.0, 8: 5.0}, engine=BROWSER).save(tmp_path / "browser.json")
    limits = {"max_latency_ms": 4, "latency_table": tmp_path / "browser.json"}
    with pytest.raises(ValueError, match=r"measured on LiteRT\.js 2.*runtime='LiteRT'$") as error:
        best_path(network, **limits)
    assert "\n" not in str(error.value)
    assert best_path(network, runtime="LiteRT.js", **limits) == 4
    assert best_path(network, runtime=None, **limits) == 4
    limits["latency_table"] = make_table(network, {0: 2.0, 4: 3.0, 8: 5.0})
    with pytest.raises(ValueError, match=r"runtime='LiteRT\.js'$"):
        best_path(network, runtime="LiteRT.js", **limits)


def measured_file(network, **fields):
    """An interpreter's side of a table: what it reads of its file."""
    rows = [{"path": [k], "madds": network.madds(k, SHAPE)} for k in (0, 4)]
    metadata = {"num_widths": network.num_widths, "input_shape": list(SHAPE), "routes": rows}
    metadata |= {"quantize": "int8", "layout": "shared", **fields}
    metadata |= {"network": network.name}
    facts = {"latency_ms": {}, "trunk_ms": 1.0, "num_threads": 1, "runtime": "interpreter"}
    facts |= {"num_gates": 1}
    return types.SimpleNamespace(metadata=metadata, **facts)


def test_an_interpreter_takes_the_latencies_of_a_table(network):
    times, file = {0: 2.0, 4: 3.0, 8: 5.0}, measured_file(network)
    make_table(network, times).give_to(file)
    assert file.latency_ms == {0: 2.0, 4: 3.0}
    assert file.trunk_ms == 0
    table = make_table(network, times, engine=BROWSER)
    with pytest.raises(ValueError, match=r"measured on LiteRT\.js"):
        table.give_to(measured_file(network))
    table.give_to(file, runtime="LiteRT.js")
    # The latencies stay those of the browser.
    given = LatencyTable.from_interpreter(file)
    assert (given.device, given.engine, given.runtime) == (table.device, BROWSER, "LiteRT.js")
    assert LatencyTable.from_interpreter(file, device="mine").device == "mine"
    with pytest.raises(ValueError, match=r"measured on LiteRT\.js"):
        best_path(network, max_latency_ms=9, latency_table=file)
    file.latency_ms = {0: 2.0, 4: 3.0}
    assert LatencyTable.from_interpreter(file).runtime == "LiteRT"
    table, file = make_table(network, times, threads=4), measured_file(network)
    with pytest.raises(ValueError, match=r"of 4 threads.*Received: an interpreter of 1$"):
        table.give_to(file)
    assert file.latency_ms == {}
    table.give_to(file, runtime=None)


def test_a_table_of_the_other_engine_of_litert_is_refused(network):
    times, engine = {0: 2.0, 4: 3.0}, "LiteRT CompiledModel 2.3.0"
    interpreter, compiled = measured_file(network), measured_file(network)
    compiled.runtime = "compiled"
    make_table(network, times, engine=engine).give_to(compiled)
    assert compiled.latency_ms == times
    with pytest.raises(ValueError, match=r"measured on LiteRT CompiledModel 2.*runtime='LiteRT'$"):
        make_table(network, times, engine=engine).give_to(interpreter)
    with pytest.raises(ValueError, match=r"measured on LiteRT 2.*runtime='LiteRT CompiledModel'$"):
        make_table(network, times).give_to(compiled)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantize": None}, "quantize='int8'. Received: a file with quantize=None"),
        ({"layout": "fast"}, "layout='shared'"),
        ({"input_shape": [32, 32, 3]}, "input_shape="),
        ({"routes": [{"path": [0], "madds": 7}]}, r"no path \[0\] with 7 MAdds"),
    ],
)
def test_an_interpreter_of_another_file_refuses_a_table(network, fields, message):
    file = measured_file(network, **fields)
    with pytest.raises(ValueError, match=message):
        make_table(network, {0: 2.0, 4: 3.0}).give_to(file)
    assert file.latency_ms == {}


def test_the_tables_of_a_recipe_and_of_a_benchmark_are_read_from_files(network, tmp_path):
    accuracies = {0: 0.5, 4: 0.7, 8: 0.6, 13: 0.8}
    rows = [
        {"path": path, "rho": 1.0, "madds": network.madds(path), "top1": top1}
        for path, top1 in accuracies.items()
    ]
    rows.append({"path": "dynamic", "madds": 1.5e6, "top1": 0.99, "shares": [{0: 1.0}]})
    write_table(rows, tmp_path, "paths")
    make_table(network, {0: 2.0, 4: 3.0, 8: 5.0, 13: 9.0}).save(tmp_path / "phone.json")
    tables = {"accuracy": tmp_path / "paths.json", "latency_table": str(tmp_path / "phone.json")}
    assert best_path(network, max_latency_ms=5, **tables) == 4
    assert best_path(network, max_latency_ms=10, **tables) == 13


def test_equal_accuracies_take_fewer_madds(network):
    rows = [{"path": path, "top1": top1} for path, top1 in {13: 0.7, 4: 0.7, 8: 0.7}.items()]
    assert best_path(network, max_madds=1e9, accuracy=rows) == 4


def test_a_path_without_an_accuracy_is_not_taken(network):
    rows = [{"path": 0, "top1": 0.2}, {"path": 6, "top1": 0.9}, {"path": "largest", "top1": 0.9}]
    assert best_path(network, max_madds=1e9, accuracy=rows) == 6
    assert best_path(network, max_madds=network.madds(0), accuracy=rows) == 0


def test_several_gates_give_a_width_for_each():
    assert best_path(TwoGates(), max_madds=1395) == (3, 1)
    assert best_path(TwoGates(), max_madds=1375) == (1, 3)
    rows = [{"path": [0, 3], "top1": 0.7}, {"path": [3, 0], "top1": 0.8}, {"path": 1, "top1": 0.9}]
    assert best_path(TwoGates(), max_madds=1395, accuracy=rows) == (1, 1)
    table = make_table(TwoGates(), {(0, 3): 2.0, (3, 0): 3.0, (1, 1): 4.0})
    limits = {"max_latency_ms": 3.5, "latency_table": table, "accuracy": rows}
    assert best_path(TwoGates(), **limits) == (3, 0)


def test_too_many_paths_need_a_table():
    network = TwoGates()
    network.num_gates, network.routes = 7, (0, 1, 2, 3)
    with pytest.raises(ValueError, match="16384, too many to try: pass `accuracy`"):
        best_path(network, max_madds=1e9)


def test_what_is_returned_is_what_a_model_takes(network):
    path = best_path(network, max_madds=network.madds(8))
    assert type(path) is int
    assert network(np.zeros((1, *SHAPE), "float32"), path=path).shape == (1, 10)


def test_where_nothing_fits_the_cheapest_path_is_taken_with_a_warning(network):
    table = make_table(network, {0: 2.25, 4: 1.75, 8: 5.0})
    message = rf"cheapest, 0, is returned and needs {network.madds(0)} MAdds.*max_madds=10$"
    with pytest.warns(UserWarning, match=message):
        assert best_path(network, max_madds=10) == 0
    with pytest.warns(UserWarning, match=r"needs 1\.75 ms. Received: max_latency_ms=1$"):
        assert best_path(network, max_latency_ms=1, latency_table=table) == 4
    # Path 4 is fast enough, path 0 small enough: neither is both, and 0 goes less beyond.
    assert network.madds(4) / network.madds(0) > 2.25 / 2
    limits = {"max_latency_ms": 2, "max_madds": network.madds(0), "latency_table": table}
    with pytest.warns(UserWarning, match=r"needs \d+ MAdds and 2\.25 ms"):
        assert best_path(network, **limits) == 0


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "A budget is needed"),
        ({"max_madds": 0}, "must be a positive number. Received: max_madds=0"),
        ({"max_madds": float("nan")}, "must be a positive number"),
        ({"max_latency_ms": "5"}, "must be a positive number. Received: max_latency_ms='5'"),
        ({"max_latency_ms": 5}, "need each other"),
        ({"max_madds": 5, "latency_table": "phone.json"}, "need each other"),
    ],
)
def test_a_wrong_budget_is_refused_before_any_file_is_read(network, limits, message):
    with pytest.raises(ValueError, match=message):
        best_path(network, **limits)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "must be rows of `evaluate_paths`"),
        ({"path": 0, "top1": 0.5}, "must be rows of `evaluate_paths`. Received: dict"),
        ([{"path": 0, "accuracy": 0.5}], "must have path and top1 in every row"),
        ([{"path": 0, "top1": 70.1}], "top1 from 0 to 1. Received: top1=70.1"),
        ([{"path": 14, "top1": 0.7}], "is of another network: `path` must be an int from 0 to 13"),
        ([{"path": 0, "top1": 0.7, "madds": 1}], "another network or image size: path 0 has 1"),
    ],
)
def test_accuracies_that_do_not_fit_are_refused(network, rows, message):
    with pytest.raises(ValueError, match=message):
        best_path(network, max_madds=1e9, accuracy=rows)


def test_an_accuracy_table_that_is_no_json_is_named(network, tmp_path):
    (tmp_path / "paths.json").write_text("path,top1\n0,0.5\n")
    with pytest.raises(UserError, match=r"accuracy table .*paths.json is not JSON"):
        best_path(network, max_madds=1e9, accuracy=tmp_path / "paths.json")


def test_a_model_of_any_image_size_needs_one(network):
    open_network = make_network(input_shape=(None, None, 3))
    with pytest.raises(ValueError, match="the size of the images"):
        best_path(open_network, max_madds=1e9)
    limit = network.madds(8)
    assert best_path(open_network, max_madds=limit, input_shape=SHAPE) == 8
    table = make_table(network, {4: 3.0})
    assert best_path(open_network, max_latency_ms=5, latency_table=table) == 4
    with pytest.raises(ValueError, match=r"of images of \(64, 48, 3\). Received: input_shape="):
        best_path(open_network, max_latency_ms=5, latency_table=table, input_shape=(64, 64, 3))


def test_the_rows_that_are_left_out_are_those_that_evaluation_writes():
    assert path_selection._OFF_ROUTE_ROWS == evaluation.OFF_ROUTE_ROWS
