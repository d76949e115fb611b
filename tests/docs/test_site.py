"""The configuration of the documentation site, without the packages that build it."""

import importlib
import pathlib
import re

import pytest
from documentation import PAGES

import keras_dsnet

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
CONFIG = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
PACKAGES = sorted(set(keras_dsnet.__all__) - {"__version__"})


def test_the_navigation_lists_every_page():
    listed = re.findall(r": (\S+\.md)$", CONFIG, re.MULTILINE)
    pages = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}
    assert set(listed) == pages | {"contributing.md", "changelog.md"}
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_api_reference_lists_every_public_name(package):
    module = importlib.import_module(f"keras_dsnet.{package}")
    listed = re.findall(r"^::: keras_dsnet\.(\S+)", PAGES[f"docs/api/{package}.md"], re.MULTILINE)
    assert all(name.startswith(f"{package}.") for name in listed)
    names = {name.split(".")[-1] for name in listed}
    if package == "applications":
        names -= {"preprocess_input", "decode_predictions", "Variant"}
        assert names == {name for name in module.__all__ if not name.startswith("ds_")}
    else:
        assert names == set(module.__all__)


def test_the_site_loads_nothing_from_other_servers():
    assert re.search(r"^  font: false$", CONFIG, re.MULTILINE)
    assert not re.search(r"extra_(css|javascript)|https?://", CONFIG)
