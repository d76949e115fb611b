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


def test_the_guides_have_one_order_everywhere():
    (order,) = re.findall(r"^  - Guides:\n((?:      - .*\n)+)", CONFIG, re.MULTILINE)
    order = re.findall(r"guides/(\w+)\.md$", order, re.MULTILINE)
    assert re.findall(r"^- \[[^]]+\]\(guides/(\w+)\.md\)", PAGES["docs/index.md"], re.M) == order
    readme = PAGES["README.md"].partition("## Documentation")[2]
    assert re.findall(r"^- \[[^]]+\]\(docs/guides/(\w+)\.md\)", readme, re.MULTILINE) == order
    following = PAGES["docs/guides/first_steps.md"].partition("## Next")[2]
    listed = re.findall(r"^- \[[^]]+\]\((\w+)\.md\)", following, re.MULTILINE)
    assert ["first_steps", *listed] == order


def test_the_page_of_results_lists_every_page_of_results():
    listed = re.findall(
        r"^- \[[^]]+\]\((\w+\.md)\): \S", PAGES["docs/results/index.md"], re.MULTILINE
    )
    pages = {page.removeprefix("docs/results/") for page in PAGES if "docs/results/" in page}
    assert sorted(listed) == sorted(pages - {"index.md"})


def test_the_summary_of_files_for_phones_has_the_figures_of_its_tables():
    page = PAGES["docs/results/mobile.md"]
    summary, *sections = re.split(r"^## ", page, flags=re.MULTILINE)
    sections = dict(section.split("\n", 1) for section in sections)
    rows = re.findall(r"^\| \[(.+)\]\(#\S+\) \| (\w+) \|(.*)\|$", summary, re.MULTILINE)
    assert len(rows) == 10
    for title, kind, cells in rows:
        expected = []
        for layout in ("shared", "fast"):
            files = rf"^- {kind}, {layout}: (\S+) MB, (\S+) of the widest width alone"
            for size, ratio in re.findall(files, sections[title], re.MULTILINE):
                routes = rf"^\| {kind} \| {layout} \|.*? \| [\d.]+ / [\d.]+ \| ([\d.]+) / [\d.]+ \|"
                slowest = max(re.findall(routes, sections[title], re.MULTILINE), key=float)
                expected += [size, ratio, slowest]
        assert [cell.strip() for cell in cells.split("|") if cell.strip()] == expected


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
