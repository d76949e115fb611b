"""Latency tables: written whole, read back, and refused in one line where they are wrong."""

import json

import pytest
from tiny_mobilenet import TINY_SPEC

from keras_dsnet.export import LatencyTable
from keras_dsnet.models import DynamicSlimmableNetwork
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
    return make_network()


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

    num_gates, num_threads = 1, 2

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
    with pytest.raises(ValueError, match=r"call `calibrate_latency\(\)` first"):
        LatencyTable.from_interpreter(Interpreter(network, {}))
