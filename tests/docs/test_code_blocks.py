"""Runs the Python of the README and of the guides, each page from top to bottom."""

import ast
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from detection_data import write_voc, xml
from documentation import PAGES, blocks_not_run, code_of, pages_with_code
from routed_networks import SHORT_SPEC, small_network

import keras_dsnet
from keras_dsnet.export import LatencyTable


def _network_and_pixels():
    model = keras_dsnet.applications.DSMobileNet(
        input_shape=(32, 32, 3), classes=4, alpha=0.25, output_stride=16
    )
    model.gates_trained = True
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), "uint8")
    return {"model": model, "images": images, "labels": np.arange(16) % 4}


def _network_and_data():
    images = np.random.default_rng(0).normal(size=(8, 24, 24, 3)).astype("float32")
    batches = tf.data.Dataset.from_tensor_slices((images, np.arange(8) % 5)).batch(4)
    model = small_network(5, input_shape=(24, 24, 3), spec=SHORT_SPEC)
    model.gates_trained = False
    return {"model": model, "dataset": batches, "validation_dataset": batches}


def _folder_of_flowers():
    for index, name in enumerate(("daisy", "rose")):
        folder = pathlib.Path("flowers", name)
        folder.mkdir(parents=True)
        for number in range(10):
            generator = np.random.default_rng([index, number])
            pixels = generator.integers(0, 256, (40, 40, 3), "uint8")
            keras.utils.save_img(folder / f"{number}.png", pixels, scale=False)
    return {}


def _photograph():
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), "uint8")
    keras.utils.save_img("photo.jpg", pixels, scale=False)
    return {}


def _folder_of_pets():
    boxes = [("cat", (2, 5, 22, 35)), ("dog", (1, 40, 11, 55))]
    names = [f"im{number}" for number in range(12)]
    lists = {"train": names[:8], "val": names[8:]}
    write_voc(pathlib.Path("pets"), dict.fromkeys(names, xml(*boxes)), lists)
    return {}


def _table_of_a_browser():
    model = small_network(spec=SHORT_SPEC)
    madds = [(width, model.madds(width)) for width in (0, 2)]
    LatencyTable(
        device="Linux, Chrome 156",
        engine="LiteRT.js 2.5.3, XNNPACK, WebAssembly",
        threads=1,
        network=model.name,
        input_shape=(16, 16, 3),
        num_widths=model.num_widths,
        rows=[{"path": [k], "madds": n, "min_ms": 1, "median_ms": 1 + k} for k, n in madds],
    ).save("latency_ds_mobilenet_browser.json")
    return {"model": model}


# What a page takes for granted: returns its names, and makes its files in the current folder.
PREPARATIONS = {
    "docs/android.md": _network_and_pixels,
    "docs/guides/first_steps.md": _photograph,
    "docs/guides/in_the_browser.md": _table_of_a_browser,
    "docs/guides/training.md": _network_and_data,
    "docs/guides/which_routing.md": _network_and_data,
    "docs/guides/your_own_boxes.md": _folder_of_pets,
    "docs/guides/your_own_images.md": _folder_of_flowers,
}
# tests/test_readme.py and test_networks.py run these, and check more of their results.
CHECKED_ELSEWHERE = ("README.md", "docs/guides/a_family_of_your_own.md", "docs/networks.md")
LONG = (
    "docs/android.md",
    "docs/guides/first_steps.md",
    "docs/guides/to_the_phone.md",
    "docs/guides/your_own_boxes.md",
    "docs/guides/your_own_images.md",
)
RUN_HERE = [
    pytest.param(page, marks=[pytest.mark.long] if page in LONG else [pytest.mark.slow])
    for page in pages_with_code()
    if page not in CHECKED_ELSEWHERE
]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_HERE)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": f"page_{pathlib.Path(page).stem}"}
    names.update(PREPARATIONS.get(page, dict)())
    exec(compile(code_of(page), page, "exec"), names)


@pytest.mark.parametrize("page", PREPARATIONS)
def test_a_page_says_what_its_names_stand_for(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = set(PREPARATIONS[page]())
    used = {node.id for node in ast.walk(ast.parse(code_of(page))) if isinstance(node, ast.Name)}
    prose = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    for name in given & used:
        paragraphs = [text for text in prose.split("\n\n") if f"`{name}`" in text]
        assert any("](" in text for text in paragraphs), f"{page} does not say what {name} is"


def test_every_guide_is_checked():
    guides = {page for page in PAGES if page.startswith("docs/guides/")}
    assert {"README.md", "docs/index.md", *guides} <= set(pages_with_code())
    assert set(PREPARATIONS) | set(CHECKED_ELSEWHERE) | set(LONG) <= set(pages_with_code())


@pytest.mark.parametrize(("page", "reason"), blocks_not_run())
def test_a_block_that_is_not_run_says_why(page, reason):
    assert len(reason.split()) >= 3, page
