import ast
import itertools
import pathlib
import re
import shlex

import keras
import numpy as np
import pytest
from documentation import PAGES, code_of
from light_programs import run_light_program

from keras_dsnet.export import DynamicInterpreter

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
README = PAGES["README.md"]
RECIPES = {path.stem: path for path in (REPOSITORY / "recipes").rglob("*.py")}
# What absl defines for every program.
ABSL_FLAGS = {"flagfile", "help"}


@pytest.mark.slow
def test_first_use_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"## First use\n\n```python\n(.*?)```", README, re.DOTALL).group(1)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "model.keras").is_file()


@pytest.mark.slow
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


def _commands(text, pattern):
    """Returns the words of the commands in the blocks of a page that begin with a pattern."""
    text = re.sub(r"\\\n\s*", " ", text)
    return [shlex.split(line, comments=True) for line in re.findall(rf"^{pattern}.*", text, re.M)]


def _sources(program):
    """Returns the source of a program of `recipes/`, and of all that it imports from there."""
    found, waiting = {}, [program]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found[path] = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(found[path])):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(alias.name for alias in node.names)]
            stems = {name.split(".")[-1] for name in names}
            waiting += [RECIPES[stem] for stem in stems if stem in RECIPES]
    return "\n".join(found.values())


@pytest.mark.parametrize("page", [page for page in PAGES if _commands(PAGES[page], "make ")])
def test_commands_name_targets_that_exist(page):
    makefile = (REPOSITORY / "Makefile").read_text()
    for command in _commands(PAGES[page], "make "):
        assert re.search(rf"^{command[1]}:", makefile, re.MULTILINE), command


@pytest.mark.parametrize("page", [page for page in PAGES if _commands(PAGES[page], "python recip")])
def test_commands_name_recipes_and_flags_that_exist(page):
    commands = [command[1:] for command in _commands(PAGES[page], "python recipes/")]
    # recipes/launch.py takes the command of another program after two hyphens.
    launched = [command[command.index("--") + 1 :] for command in commands if "--" in command]
    commands = [command[: [*command, "--"].index("--")] for command in commands]
    for recipe, *arguments in commands + launched:
        source = _sources(REPOSITORY / recipe)
        for argument in arguments:
            name, _, value = argument.removeprefix("--").partition("=")
            names = {name, name.removeprefix("no")}
            assert names & ABSL_FLAGS or any(f'"{flag}"' in source for flag in names), (
                f"{recipe} has no --{name}"
            )
            if name == "flagfile":
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
