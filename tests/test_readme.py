import ast
import functools
import itertools
import pathlib
import re
import shlex

import keras
import numpy as np
import pytest
from documentation import PAGES, code_of
from light_programs import run_light_program

import keras_dsnet
from keras_dsnet.export import DynamicInterpreter

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
README = PAGES["README.md"]


@pytest.mark.slow
def test_first_use_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"## First use\n\n```python\n(.*?)```", README, re.DOTALL).group(1)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "model.keras").is_file()


@pytest.mark.long
def test_the_family_of_ones_own_trains_routes_and_loads_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = "docs/guides/a_family_of_your_own.md"
    first_block = re.search(r"```python\n(.*?)```", PAGES[page], re.DOTALL).group(1)
    assert len(first_block.splitlines()) <= 60
    names = {"__name__": "plain_net"}
    exec(compile(code_of(page), page, "exec"), names)
    model, images = names["model"], names["images"]
    assert model.num_gates == 2
    assert model.route(images).shape == (8, 2)
    loaded = keras.models.load_model("plain.keras")
    np.testing.assert_array_equal(loaded(images, path=(0, 2)), model(images, path=(0, 2)))
    plain = model.subnetwork((2, 0))
    np.testing.assert_allclose(plain(images), model(images, path=(2, 0)), atol=1e-4)
    widths = [tuple(map(int, path)) for path in model.route(images).numpy()]
    expected = [model(images[i : i + 1], path=path)[0] for i, path in enumerate(widths)]
    np.testing.assert_allclose(model(images), expected, atol=1e-4)
    interpreter = DynamicInterpreter("plain.tflite")
    for path in itertools.product((0, 2), repeat=2):
        output, taken = interpreter.run(images[0], min_width=path, max_width=path)
        assert taken == path
        np.testing.assert_allclose(output, model(images[:1], path=path)[0], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DSMobileNet", "DSResNet50", "DSEfficientNetB0"])
def test_the_table_of_networks_has_their_figures(name):
    model = getattr(keras_dsnet.applications, name)()
    row = re.search(rf"^\| `{name}` \|(.*)$", README, re.M).group(1).split("|")
    table = model.width_table()
    ends = [
        (round(table[0][key] / unit, digits), round(table[-1][key] / unit, digits))
        for key, unit, digits in (("madds", 1e6, None), ("parameters", 1e6, 1))
    ]
    assert [cell.strip() for cell in row[:4]] == [
        str(model.num_gates),
        str(model.num_widths),
        *(f"{low}M to {high}M" for low, high in ends),
    ]
    assert f"{model.count_params() / 1e6:.1f}M" in README.split("All widths together store")[1]


def _commands(text, pattern):
    """Returns the words of the commands in the blocks of a page that begin with a pattern."""
    text = re.sub(r"\\\n\s*", " ", text)
    return [shlex.split(line, comments=True) for line in re.findall(rf"^{pattern}.*", text, re.M)]


def _program_commands(text):
    """Returns the words of the commands in a text that run programs of `recipes/`.

    They stand in blocks, in lines of loops, after other words, and in the midst of a sentence.
    """
    text = re.sub(r"\\\n\s*", " ", text)
    found = [shlex.split(line) for line in re.findall(r"python (recipes/[^`|;&>#\n]*)", text)]
    # recipes/launch.py takes the command of another program after two hyphens.
    launched = [command[command.index("--") + 1 :] for command in found if "--" in command]
    return [command[: [*command, "--"].index("--")] for command in found] + launched


@functools.cache
def _flags_of(program):
    """Returns the arguments that a program takes, up to the equals sign: `{"--model=", ...}`."""
    text = run_light_program(REPOSITORY / program, "--helpfull").stdout
    flags = set()
    for is_bool, name in re.findall(r"^  (?:-\S,)?--(\[no\])?(\w+):", text, re.MULTILINE):
        flags |= {f"--{name}", f"--no{name}"} if is_bool else {f"--{name}="}
    return flags


PAGES_AND_PROGRAMS = PAGES | {
    str(path.relative_to(REPOSITORY)): ast.get_docstring(ast.parse(path.read_text())) or ""
    for path in sorted((REPOSITORY / "recipes").rglob("*.py"))
}


@pytest.mark.parametrize("page", [page for page in PAGES if _commands(PAGES[page], "make ")])
def test_commands_name_targets_that_exist(page):
    makefile = (REPOSITORY / "Makefile").read_text()
    for command in _commands(PAGES[page], "make "):
        assert re.search(rf"^{command[1]}:", makefile, re.MULTILINE), command


@pytest.mark.parametrize(
    "page", [page for page, text in PAGES_AND_PROGRAMS.items() if _program_commands(text)]
)
def test_commands_name_recipes_and_flags_that_exist(page):
    for program, *arguments in _program_commands(PAGES_AND_PROGRAMS[page]):
        for argument in arguments:
            if not argument.startswith("-"):
                # The dots stand for more flags; only one program takes anything else.
                assert argument == "..." or "arguments=True" in (REPOSITORY / program).read_text()
                continue
            flag, equals, value = argument.partition("=")
            assert flag + equals in _flags_of(program), f"{program} has no {flag + equals}"
            if flag == "--flagfile":
                assert (REPOSITORY / value).is_file(), value


@pytest.mark.parametrize("stage", ["stage I", "stage II"])
def test_the_table_of_flags_has_flags_of_the_programs(stage):
    program = {"stage I": "imagenet_stage1", "stage II": "imagenet_stage2"}[stage]
    printed = run_light_program(REPOSITORY / f"recipes/{program}.py", "--help").stdout
    defined = set(re.findall(r"^  --(?:\[no\])?(\w+):", printed, re.MULTILINE))
    rows = re.findall(r"^\| (`--.*?) \| (.+?) \|", PAGES["docs/guides/training.md"], re.MULTILINE)
    for flags, owner in rows:
        for flag in re.findall(r"--(\w+)", flags):
            if owner in (stage, "both", "both stages"):
                assert flag in defined, (flag, owner)
            else:
                assert flag not in defined, (flag, owner)
    assert {owner for _, owner in rows} <= {"stage I", "stage II", "both", "both stages"}
    assert len(rows) >= 15


@pytest.mark.parametrize("wrong", ["--learning_rate=3", "--noworkdir", "--confidence", "--model"])
def test_flags_of_other_programs_and_other_kinds_are_not_flags_of_a_program(wrong):
    taken = _flags_of("recipes/evaluate.py")
    assert {"--model=", "--workdir=", "--flagfile=", "--help", "--nodebug"} <= taken
    flag, equals, _ = wrong.partition("=")
    assert flag + equals not in taken


@pytest.mark.parametrize("page", PAGES)
def test_links_into_the_repository_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", PAGES[page]):
        assert (REPOSITORY / page).parent.joinpath(target).exists(), target


def _golden(name):
    lines = (REPOSITORY / "tests" / "golden" / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("line", _golden("readme_imports.txt"))
def test_every_import_that_the_readme_has_named_still_works(line):
    exec(line, {})


def test_every_make_target_and_program_that_the_readme_has_named_is_still_there():
    makefile = (REPOSITORY / "Makefile").read_text()
    for command in map(shlex.split, _golden("readme_commands.txt")):
        if command[0] == "make":
            assert re.search(rf"^{command[1]}:", makefile, re.MULTILINE), command
        elif command[0] == "python" and command[1] != "-m":
            assert (REPOSITORY / command[1]).is_file(), command
