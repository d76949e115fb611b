import itertools
import pathlib
import re

import keras
import numpy as np
import pytest

from keras_dsnet.export import DynamicInterpreter

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_first_use_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"## First use\n\n```python\n(.*?)```", README, re.DOTALL).group(1)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "model.keras").is_file()


@pytest.mark.slow
def test_the_family_of_ones_own_trains_routes_and_loads_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = re.search(r"## A family of your own\n(.*?)\n## ", README, re.DOTALL).group(1)
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    assert len(code.splitlines()) <= 60
    names = {"__name__": "plain_net"}
    exec(compile(code, "README.md", "exec"), names)
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
    model.export("plain.tflite", format="litert", routes=(0, 2), verbose=False)
    interpreter = DynamicInterpreter("plain.tflite")
    for path in itertools.product((0, 2), repeat=2):
        output, taken = interpreter.run(images[0], min_width=path, max_width=path)
        assert taken == path
        np.testing.assert_allclose(output, model(images[:1], path=path)[0], atol=1e-4)


def test_commands_name_targets_recipes_and_flags_that_exist():
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    commands = re.findall(r"^python (recipes/\S+)((?:.*\\\n)*.*)", README, re.MULTILINE)
    assert commands
    for recipe, arguments in commands:
        source = (REPOSITORY / recipe).read_text() + (
            REPOSITORY / "recipes/lib/flags.py"
        ).read_text()
        for flag in re.findall(r"--(\w+)=", arguments):
            assert f'"{flag}"' in source, f"{recipe} has no --{flag}"


def test_links_into_the_repository_lead_somewhere():
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (REPOSITORY / target).exists(), target
