"""Tests the modules of the page that need no browser."""

import inspect
import json
import pathlib
import re
import shutil
import subprocess
import types

import numpy as np
import pytest
import tensorflow as tf

from keras_dsnet.data.pipelines import evaluation_pipeline, whole_image

WEB = pathlib.Path(__file__).resolve().parents[2] / "web"
pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
# Reads lists of height, width, target, crop fraction and pixels, and writes what the page makes of
# each.
PREPARE = """
import { readFileSync } from "node:fs";
import { cropWindow, resize } from "./src/preprocess.js";
const prepared = JSON.parse(readFileSync(0)).map(([height, width, target, fraction, pixels]) => {
  const window = cropWindow(height, width, target, fraction);
  const strips = [];
  for (let y = window.top; y < window.top + window.height; y++) {
    const strip = [];
    for (let x = window.left; x < window.left + window.width; x++) {
      const place = 3 * (y * width + x);
      strip.push(...pixels.slice(place, place + 3), 255);
    }
    strips.push(strip);
  }
  return [...resize(strips, window.height, window.width, target)];
});
console.log(JSON.stringify(prepared));
"""


def node(*arguments, **options):
    command = ["node", *map(str, arguments)]
    done = subprocess.run(command, cwd=WEB, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_tests_of_the_modules_pass():
    # What `npm test` runs. From Node.js 22 on, a folder is taken for the path of a module.
    script = json.loads((WEB / "package.json").read_text(encoding="utf-8"))["scripts"]["test"]
    program, *arguments = script.split()
    assert program == "node"
    assert not any((WEB / argument).is_dir() for argument in arguments)
    printed = node(*arguments)
    names = re.compile(r'^test\("', re.MULTILINE)
    files = sorted((WEB / "test").glob("*.test.mjs"))
    written = sum(len(names.findall(file.read_text(encoding="utf-8"))) for file in files)
    assert int(re.search(r"pass (\d+)", printed)[1]) == written


def test_files_without_a_crop_fraction_are_cropped_as_evaluations_are_by_default():
    source = (WEB / "src/tflite_metadata.js").read_text(encoding="utf-8")
    fraction = float(re.search(r"const OLD_CROP_FRACTION = ([\d.]+);", source)[1])
    assert fraction == inspect.signature(evaluation_pipeline).parameters["crop_fraction"].default


@pytest.mark.parametrize("fraction", [0.875, 1.0])
def test_photographs_are_prepared_as_by_the_evaluation(fraction):
    generator = np.random.default_rng(0)
    cases = [
        (48, 80, (32, 32)),  # smaller
        (20, 17, (32, 32)),  # larger
        (101, 64, (16, 48)),  # another aspect ratio
        (1, 5, (8, 8)),
        (37, 36, (32, 32)),  # nearly the size
    ]
    images = [generator.integers(0, 256, (*case[:2], 3), dtype=np.uint8) for case in cases]
    source = types.SimpleNamespace(
        image_shape=None,
        decode=lambda image, window_of: tf.image.crop_to_bounding_box(
            image, *tf.unstack(window_of(tf.shape(image)))
        ),
    )
    requests = [[*case, fraction, image.ravel().tolist()] for case, image in zip(cases, images)]
    prepared = node("--input-type=module", "-e", PREPARE, input=json.dumps(requests))
    for (_, _, target), image, pixels in zip(cases, images, json.loads(prepared)):
        expected = whole_image(source, tf.constant(image), target, fraction).numpy()
        np.testing.assert_allclose(np.reshape(pixels, expected.shape), expected, atol=1e-3)
