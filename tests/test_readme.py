import pathlib
import re

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_first_use_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"## First use\n\n```python\n(.*?)```", README, re.DOTALL).group(1)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "model.keras").is_file()


def test_commands_name_targets_recipes_and_flags_that_exist():
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    commands = re.findall(r"^python (recipes/\S+)((?:.*\\\n)*.*)", README, re.MULTILINE)
    assert commands
    for recipe, arguments in commands:
        source = (REPOSITORY / recipe).read_text() + (REPOSITORY / "recipes/common.py").read_text()
        for flag in re.findall(r"--(\w+)=", arguments):
            assert f'"{flag}"' in source, f"{recipe} has no --{flag}"


def test_links_into_the_repository_lead_somewhere():
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (REPOSITORY / target).exists(), target
