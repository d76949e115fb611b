"""The comparison of runtimes: it finds wrong files and survives crashes."""

import json
import pathlib
import re
import sys

import numpy as np
import pytest
from runtimes import __main__ as program_of_runtimes
from runtimes import environments
from runtimes.arm_python import arm_python
from runtimes.environments import NEWEST, RUNTIMES, NotAvailableError, command_of, newest_runtimes
from runtimes.files import NAMES, make_files
from runtimes.processes import run_all
from runtimes.table import END, HEADER, START, TOLERANCES, is_right, row_of, write_table

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs/results/runtimes.md").read_text(encoding="utf-8")
PROGRAM = REPOSITORY / "tests/runtimes/run_files.py"
RIGHT, WRONG = "float32-one_gate-confidence-fast", "float32-one_gate-gate-staged"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A right file, a copy that must give other outputs, and one that is no file."""
    folder = tmp_path_factory.mktemp("files")
    make_files(folder, [RIGHT, WRONG])
    with np.load(folder / f"{WRONG}.npz") as data:
        arrays = dict(data)
    arrays["path_0"] = 1 - arrays["path_0"]
    arrays["output_1"] = arrays["output_1"] + 1.0
    np.savez(folder / f"{WRONG}.npz", **arrays)
    for suffix in ("npz", "json"):
        copy = (folder / f"{RIGHT}.{suffix}").read_bytes()
        (folder / f"int8-damaged.{suffix}").write_bytes(copy)
    (folder / "int8-damaged.tflite").write_bytes(b"no file")
    return folder


@pytest.mark.slow
def test_right_wrong_and_damaged_files_are_told_apart(folder):
    command = [sys.executable, str(PROGRAM), "interpreter"]
    rows = run_all(command, folder, [WRONG, "int8-damaged", RIGHT])
    assert is_right(rows[RIGHT])
    assert 0 < rows[RIGHT]["difference"] < TOLERANCES["float32"]
    assert rows[WRONG]["paths"] > 0
    assert rows[WRONG]["difference"] > 0.05
    assert not is_right(rows[WRONG])
    assert rows["int8-damaged"]["error"].startswith("ValueError: ")
    row = row_of(RUNTIMES[0], rows)
    assert re.search(r"\| 1 of 2, 0\.\d+ \| 0 of 1 \| ValueError: .+ \|$", row)


def program(tmp_path, text):
    """Returns the command of a program that stands for a runtime."""
    lines = ["import json, os, sys", "print('a line of the runtime')", *text]
    filename = tmp_path / "runtime.py"
    filename.write_text("\n".join(lines), encoding="utf-8")
    return [sys.executable, str(filename)]


CRASHING = [
    "print(json.dumps({'started': ''}), flush=True)",
    "for name in sys.argv[2:]:",
    "    if name == 'int8-b': os.kill(os.getpid(), 11)",
    "    print(json.dumps({'file': name, 'paths': 0, 'difference': 0.0}), flush=True)",
]


def test_a_crash_is_a_row_and_the_files_after_it_run(tmp_path):
    names = ["float32-a", "int8-b", "int8-c"]
    rows = run_all(program(tmp_path, CRASHING), tmp_path, names)
    assert [is_right(rows[name]) for name in names] == [True, False, True]
    assert rows["int8-b"]["error"] == "crash (SIGSEGV)"
    assert "| 1 of 1, 0 | 1 of 2, 0 | crash (SIGSEGV) |" in row_of(RUNTIMES[0], rows)


def test_a_runtime_that_always_crashes_is_started_three_times(tmp_path):
    lines = ["print(json.dumps({'started': ''}), flush=True)", "open('starts', 'a').write('1')"]
    command = program(tmp_path, [f"os.chdir({str(tmp_path)!r})", *lines, "os.abort()"])
    names = [f"int8-{number}" for number in range(6)]
    rows = run_all(command, tmp_path, names)
    assert {row["error"] for row in rows.values()} == {"crash (SIGABRT)"}
    assert list(rows) == names
    assert (tmp_path / "starts").read_text() == "111"


def test_a_runtime_that_does_not_start_ends_at_once(tmp_path):
    rows = run_all(program(tmp_path, ["raise ImportError('no runtime')"]), tmp_path, ["int8-a"])
    assert rows["int8-a"]["error"] == "does not start: ImportError: no runtime"


def test_outputs_that_are_no_numbers_are_wrong():
    from runtimes.run_files import compare

    expected = [(np.ones((2, 3)), np.zeros((2, 1), "int32"))]
    results = [(np.array([[1, 1, np.nan], [1, 1, 1]]), np.zeros((2, 1), "int32"))]
    assert compare(results, expected) == (0, np.inf)
    other = [(np.full((2, 3), 9.0), np.ones((2, 1), "int32"))]
    assert compare(other, expected) == (2, 0.0)


def test_without_an_emulator_its_row_says_so(monkeypatch, tmp_path):
    (emulated,) = [runtime for runtime in RUNTIMES if runtime.emulated]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotAvailableError, match="not run: qemu-aarch64-static is not installed"):
        command_of(emulated, tmp_path)
    assert "| - | - | not run: none |" in row_of(emulated, "not run: none")


def test_the_newest_releases_are_those_that_pip_finds(monkeypatch):
    def run(command):
        version = {"tensorflow": "2.30.1"}.get(command[-1], "3.0.0")
        return json.dumps({"install": [{"metadata": {"version": version}}]})

    monkeypatch.setattr(environments, "_run", run)
    names = [runtime.name for runtime in newest_runtimes()]
    assert names == [
        "LiteRT 3.0.0",
        "TensorFlow 2.30.1, `tf.lite`",
        "LiteRT 3.0.0, `CompiledModel`",
        "LiteRT 3.0.0, `CompiledModel` with XNNPACK's weight cache",
    ]
    assert {runtime.version for runtime in newest_runtimes()} == {"3.0.0", "2.30.1"}
    assert NEWEST in {runtime.version for runtime in RUNTIMES}


def test_without_a_registry_the_newest_releases_are_one_line(monkeypatch, capsys):
    def run(command):
        raise NotAvailableError("not run: no network")

    monkeypatch.setattr(environments, "_run", run)
    assert program_of_runtimes.main(["--newest"]) == 1
    line = "error: the newest releases were not found: not run: no network\n"
    assert capsys.readouterr().err == line


def test_packages_of_another_processor_are_unpacked_without_installing_them(tmp_path):
    commands = []
    folder = tmp_path / "python"

    def run(command):
        commands.append(command)
        if "install" in command:
            (folder / "archives/a.deb").touch()

    first = arm_python(folder, run)
    names = [next(word for word in command[1:] if word[:2] != "--") for command in commands]
    assert names == ["update", "install", str(folder / "archives/a.deb")]
    assert "--option=APT::Architecture=arm64" in commands[0]
    assert f"--option=Dir::State::lists={folder / 'lists'}" in commands[1]
    assert "--download-only" in commands[1]
    # The second time nothing is left to do.
    assert arm_python(folder, run) == first
    assert len(commands) == 3


def test_the_table_is_written_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"above\n{START}\nold\n{END}\nbelow\n", encoding="utf-8")
    write_table(page, ["| new |"])
    expected = "\n".join(("above", START, "", *HEADER, "| new |", "", END, "below", ""))
    assert page.read_text(encoding="utf-8") == expected


def test_the_page_has_a_row_for_each_runtime():
    table = PAGE.split(START)[1].split(END)[0].strip().splitlines()
    assert tuple(table[:2]) == HEADER
    assert [row.split(" | ")[0].removeprefix("| ") for row in table[2:]] == [
        runtime.name for runtime in RUNTIMES
    ]


def test_the_page_says_what_the_program_does():
    for kind in TOLERANCES:
        assert f"{sum(name.startswith(kind) for name in NAMES)} in {kind}" in PAGE.replace(
            "files in", "in"
        )
        assert f"{TOLERANCES[kind]:f}".rstrip("0") in PAGE
    assert f"gives, here LiteRT {RUNTIMES[3].version}." in PAGE


def test_no_file_of_the_list_is_missing_or_twice():
    assert len(set(NAMES)) == len(NAMES) == 24
