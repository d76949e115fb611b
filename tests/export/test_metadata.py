"""What a file says of itself: names of tensors, TFLite Metadata, class names, oldest runtime."""

import io
import json
import subprocess
import sys
import zipfile

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from exported import Exported
from flatbuffers.number_types import Float32Flags, Int8Flags, UOffsetTFlags
from routed_networks import SHORT_SPEC, SIZE, small_network

from keras_dsnet.export import DynamicInterpreter, export_subnetwork
from keras_dsnet.export.tflite_model import parse
from keras_dsnet.models import Normalization

NAMES = ("cat", "dog", "größe", "a b", "fox")
NORMALIZATION = Normalization(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
PIXELS = np.random.default_rng(0).integers(0, 256, (16, SIZE, SIZE, 3), "uint8")

# Run by another interpreter, which has mediapipe.
CLASSIFY = """
import json, sys, numpy as np, mediapipe as mp
from mediapipe.tasks.python import BaseOptions, vision

options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path=sys.argv[1]))
with vision.ImageClassifier.create_from_options(options) as classifier:
    results = []
    for image in np.load(sys.argv[2]):
        image = mp.Image(image_format=mp.ImageFormat.SRGB, data=np.ascontiguousarray(image))
        (own,) = classifier.classify(image).classifications
        results.append({c.index: [c.category_name, c.score] for c in own.categories})
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def network():
    options = {"class_names": NAMES, "normalization": NORMALIZATION}
    return small_network(spec=SHORT_SPEC, **options)


@pytest.fixture(scope="module")
def routed(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("routed")
    return Exported(network, folder, routes=(0, 2), input_type="uint8", verbose=False)


@pytest.fixture(scope="module")
def subnetworks(network, tmp_path_factory):
    """Files of one path that take floats, and pixels."""
    folder = tmp_path_factory.mktemp("subnetworks")
    files = {kind: folder / f"{kind}.tflite" for kind in ("float32", "uint8")}
    for kind, filename in files.items():
        export_subnetwork(network, 2, filename, input_type=kind)
    return files


def entry(content, name):
    """The bytes of a metadata entry."""
    model = parse(content)
    (index,) = [own.buffer for own in model.metadata if own.name.decode() == name]
    return bytes(model.buffers[index].data)


class Table:
    """Reads TFLite Metadata by the slots of its tables."""

    def __init__(self, content, position=None):
        self._content = content
        if position is None:
            position = flatbuffers.encode.Get(UOffsetTFlags.packer_type, content, 0)
        self._table = flatbuffers.table.Table(content, position)

    def _offset(self, slot):
        return self._table.Offset(4 + 2 * slot)

    def text(self, slot):
        return self._table.String(self._offset(slot) + self._table.Pos).decode()

    def table(self, slot):
        position = self._offset(slot) + self._table.Pos
        return Table(self._content, self._table.Indirect(position))

    def tables(self, slot):
        if not self._offset(slot):
            return []
        start = self._table.Vector(self._offset(slot))
        count = self._table.VectorLen(self._offset(slot))
        return [Table(self._content, self._table.Indirect(start + 4 * i)) for i in range(count)]

    def floats(self, slot):
        start = self._table.Vector(self._offset(slot))
        count = self._table.VectorLen(self._offset(slot))
        return [self._table.Get(Float32Flags, start + 4 * index) for index in range(count)]

    def number(self, slot):
        return self._table.Get(Int8Flags, self._offset(slot) + self._table.Pos)


def described(content):
    """The tables of the first graph's inputs, and of its outputs."""
    data = entry(content, "TFLITE_METADATA")
    assert data[4:8] == b"M001"
    (graph,) = Table(data).tables(3)
    return graph.tables(2), graph.tables(3)


@pytest.mark.slow
def test_tensors_have_the_names_of_the_signature(routed, subnetworks):
    for name in ("serving_default", "bounded"):
        graph = routed.main(name)
        names = [graph.tensors[index].name for index in (*graph.inputs, *graph.outputs)]
        bounds = [] if name == "serving_default" else [b"min_width", b"max_width"]
        assert names == [b"image", *bounds, b"output", b"path"]
    for filename in subnetworks.values():
        interpreter = Interpreter(str(filename))
        details = (*interpreter.get_input_details(), *interpreter.get_output_details())
        assert [own["name"] for own in details] == ["image", "output"]


def test_class_names_are_in_the_metadata_and_in_a_file_at_the_end(routed, subnetworks):
    assert DynamicInterpreter(routed.filename).metadata["class_names"] == list(NAMES)
    for content in (routed.content, *(f.read_bytes() for f in subnetworks.values())):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert archive.read("labels.txt").decode().splitlines() == list(NAMES)
            assert archive.getinfo("labels.txt").compress_type == zipfile.ZIP_STORED
        _, (output, *others) = described(content)
        (labels,) = output.tables(6)
        assert (labels.text(0), labels.number(2)) == ("labels.txt", 2)
        assert all(not other.tables(6) for other in others)


def test_the_networks_normalisation_is_in_the_metadata_and_in_files_of_pixels(
    network, routed, subnetworks
):
    expected = network(NORMALIZATION(PIXELS), path=2).numpy()
    runner = Interpreter(str(subnetworks["uint8"])).get_signature_runner("serving_default")
    outputs = np.concatenate([runner(image=image[None])["output"] for image in PIXELS])
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    np.testing.assert_allclose(routed.bounded(PIXELS, 2, 2)[0], expected, atol=1e-5)
    how = DynamicInterpreter(routed.filename).metadata["preprocessing"]
    assert (how["mean"], how["std"]) == ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])

    (image,), _ = described(subnetworks["float32"].read_bytes())
    (unit,) = image.tables(4)
    np.testing.assert_allclose(unit.table(1).floats(0), [102, 127.5, 153])
    np.testing.assert_allclose(unit.table(1).floats(1), [51, 63.75, 76.5])
    for content in (routed.content, subnetworks["uint8"].read_bytes()):
        (image,), _ = described(content)
        assert not image.tables(4)


def test_the_file_names_the_oldest_runtime_that_runs_it_right(routed):
    assert entry(routed.content, "min_runtime_version").rstrip(b"\0") == b"2.14.0"
    oldest = DynamicInterpreter(routed.filename).metadata["oldest_runtime"]
    assert oldest == {"tensorflow": "2.14.0", "litert": "1.0.1"}


@pytest.mark.long
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_mediapipe_classifies_pixels_by_the_file_alone(network, mediapipe, tmp_path, quantize):
    filename, pixels = tmp_path / "m.tflite", tmp_path / "pixels.npy"
    data = {"representative_data": PIXELS} if quantize else {}
    export_subnetwork(network, 2, filename, quantize=quantize, input_type="uint8", **data)
    np.save(pixels, PIXELS)
    command = [mediapipe, "-c", CLASSIFY, filename, pixels]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = network(NORMALIZATION(PIXELS), path=2).numpy()
    for found, own in zip(json.loads(done.stdout), expected, strict=True):
        assert {int(index): name for index, (name, _) in found.items()} == dict(enumerate(NAMES))
        scores = [found[str(index)][1] for index in range(len(NAMES))]
        np.testing.assert_allclose(scores, own, atol=1e-5 if quantize is None else 0.1)


@pytest.fixture(scope="module")
def mediapipe(tmp_path_factory):
    """The Python of an environment that has mediapipe, whose packages would change this one's."""
    folder = tmp_path_factory.mktemp("mediapipe")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [folder / "bin/python", "-m", "pip", "install", "--quiet", "mediapipe"]
    if subprocess.run(install, capture_output=True).returncode:
        pytest.skip("mediapipe cannot be installed here")
    return folder / "bin/python"
