"""Small data sets with boxes for the tests of detection."""

import json
import pathlib

import pytest
from detection_data import coco_content, picture, write_voc, xml


@pytest.fixture
def voc_folder(tmp_path):
    """Twelve images of cats and dogs; image i has a cat at its own place, every third a dog."""
    annotations = {}
    for index in range(12):
        objects = [("cat", (2 + index, 5, 22 + index, 35.5))]
        if index % 3 == 0:
            objects.append(("dog", (1, 40, 11, 55), index == 0))
        annotations[f"im {index}"] = xml(*objects)
    names = list(annotations)
    return write_voc(tmp_path / "pets", annotations, {"train": names[:9], "val": names[9:]})


@pytest.fixture
def coco_folder(tmp_path):
    root = tmp_path / "coco"
    for split, count in (("train", 6), ("valid", 3)):
        folder = root / split
        folder.mkdir(parents=True)
        content = coco_content(count)
        for image in content["images"]:
            (folder / image["file_name"]).write_bytes(picture(image["id"]))
        (folder / "_annotations.coco.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def shared_voc():
    folder = pathlib.Path(__file__).resolve().parents[3] / "shared" / "tfds"
    if not (folder / "voc").is_dir():
        pytest.skip("../shared/tfds/voc is absent")
    return str(folder)
