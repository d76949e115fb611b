"""The files of class folders that are used, and the notes about the others."""

import io
import logging
import os
import pathlib
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from keras_dsnet.data import evaluation_pipeline, load_source, training_pipeline
from keras_dsnet.data.encoded_image import read_header

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8))


def _encoded(image_format, image=NOISE, **settings):
    file = io.BytesIO()
    image.save(file, image_format, **settings)
    return file.getvalue()


JPEG = _encoded("JPEG")


@pytest.fixture
def folder(tmp_path):
    """Two classes of three photographs, `train/` and `val/` with the same images."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(3):
                (tmp_path / split / name / f"{index}.jpg").write_bytes(JPEG)
    return tmp_path


def _names(source):
    return sorted(pathlib.Path(path).name for path in source.paths if "/cat/" in path)


def test_what_programs_leave_in_folders_is_not_trained_on(folder):
    cat = folder / "train" / "cat"
    for name in (".ipynb_checkpoints", ".thumbnails", "__MACOSX", "@eaDir"):
        (cat / name).mkdir()
        (cat / name / "0.jpg").write_bytes(JPEG)
    for name in (".DS_Store", "._0.jpg", "Thumbs.db", "desktop.ini", ".0.jpg", "0.jpg~"):
        (cat / name).write_bytes(JPEG)
    for name in (".ipynb_checkpoints", "__MACOSX", ".cache"):
        shutil.copytree(cat, folder / "train" / name)
    source = load_source(folder)
    assert source.class_names == ("cat", "dog")
    assert _names(source) == ["0.jpg", "1.jpg", "2.jpg"]
    assert source.notes == ()


TRANSPARENT = NOISE.convert("RGBA")
TRANSPARENT.putalpha(100)
IMAGES = {
    "x.JPE": JPEG,
    "x.jfif": JPEG,
    "x.JPEG": JPEG,
    "noending": JPEG,
    "a_jpeg.tif": JPEG,
    "a_png.jpg": _encoded("PNG"),
    "a_gif.png": _encoded("GIF"),
    "x.webp": _encoded("WEBP"),
    "lossless.webp": _encoded("WEBP", lossless=True),
    "alpha.webp": _encoded("WEBP", TRANSPARENT),
    "X.BMP": _encoded("BMP"),
    "gray.bmp": _encoded("BMP", NOISE.convert("L")),
    "animated.gif": _encoded("GIF", save_all=True, append_images=[NOISE.rotate(90)]),
    "cmyk.jpg": _encoded("JPEG", NOISE.convert("CMYK")),
    "gray.jpg": _encoded("JPEG", NOISE.convert("L")),
    "progressive.jpg": _encoded("JPEG", progressive=True),
    "gray_alpha.png": _encoded("PNG", NOISE.convert("LA")),
    "palette.png": _encoded("PNG", NOISE.convert("P")),
    "1bit.png": _encoded("PNG", NOISE.convert("1")),
    "16bit.png": _encoded("PNG", Image.fromarray(np.full((9, 9), 40_000, np.uint16))),
    "1x1.jpg": _encoded("JPEG", NOISE.crop((0, 0, 1, 1))),
    "a b#%\u00e9.jpg": JPEG,
    os.fsdecode(b"caf\xe9.jpg"): JPEG,
}


@pytest.mark.slow
@pytest.mark.parametrize("limit", [10_000, 0])
def test_every_image_that_tensorflow_decodes_is_used(folder, limit, monkeypatch, to_float):
    monkeypatch.setattr("keras_dsnet.data.image_folder.FULL_CHECK_FILES", limit)
    shutil.rmtree(folder / "val" / "cat")
    (folder / "val" / "cat").mkdir()
    for name, content in IMAGES.items():
        (folder / "val" / "cat" / name).write_bytes(content)
    source = load_source(folder, split="eval", on_bad_image="raise")
    assert set(_names(source)) == set(IMAGES)
    assert source.notes == ()
    count = len(IMAGES) + 3
    images = evaluation_pipeline(source, image_size=8, batch_size=count, preprocess=to_float)
    assert [len(labels) for _, labels in images] == [count]
    ((images, _),) = training_pipeline(
        source,
        image_size=8,
        batch_size=count,
        seed=1,
        preprocess=to_float,
        augmentation="imagenet",
    ).take(1)
    assert not np.any(np.all(images == 127.5, axis=(1, 2, 3)))


def _animated_webp():
    return _encoded("WEBP", save_all=True, append_images=[NOISE.rotate(90)])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.tif", _encoded("TIFF"), r"1 files with .tif \(TensorFlow does not decode TIFF\)"),
        ("x.heic", b"\0\0\0\x18ftypheic", "does not decode HEIC"),
        ("x.avif", b"\0\0\0\x18ftypavif", "does not decode AVIF"),
        ("x.txt", b"cats", r"1 files with .txt \(not images\) skipped: .*x.txt"),
        ("x", b"cats", "1 files with no ending"),
        ("x.jpg.part", JPEG, "1 files with .part"),
        ("x.jpg", b"", "skipped 1 of 7 images"),
        ("x.jpg", JPEG[:-9], "skipped 1 of 7 images"),
        ("x.jpg", b"<html>", "skipped 1 of 7 images"),
        ("x.jpg", _encoded("TIFF"), "skipped 1 of 7 images"),
        ("x.bmp", _encoded("BMP", NOISE.convert("P")), "skipped 1 of 7 images"),
        ("x.bmp", _encoded("BMP", NOISE.convert("1")), "skipped 1 of 7 images"),
        ("x.webp", _animated_webp(), "skipped 1 of 7 images"),
        (os.fsdecode(b"caf\xe9.txt"), b"cats", r"caf\\xe9.txt"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_what_cannot_be_used_is_counted_and_named(folder, name, content, message, monkeypatch):
    (folder / "train" / "cat" / name).write_bytes(content)
    for limit in (10_000, 0):
        monkeypatch.setattr("keras_dsnet.data.image_folder.FULL_CHECK_FILES", limit)
        source = load_source(folder)
        assert source.num_examples == 6
        (note,) = source.notes
        assert re.search(message, note)
        note.encode()


def test_an_image_of_enormous_size_is_refused_by_its_header(folder, caplog):
    content = bytearray(_encoded("PNG"))
    content[16:24] = b"\0\0\xff\xff\0\0\xff\xff"
    (folder / "train" / "cat" / "bomb.png").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert load_source(folder).num_examples == 6
    assert "65535x65535 pixels" in caplog.text
    with pytest.raises(ValueError, match=r"bomb.png cannot be read: 65535x65535 pixels"):
        load_source(folder, on_bad_image="raise")


def test_linked_folders_and_files_are_followed_and_cycles_are_not(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "linked.jpg").write_bytes(JPEG)
    cat = folder / "train" / "cat"
    (cat / "more").symlink_to(elsewhere)
    (cat / "file.jpg").symlink_to(elsewhere / "linked.jpg")
    (cat / "broken.jpg").symlink_to(elsewhere / "nothing.jpg")
    (cat / "loop").symlink_to(cat)
    (cat / "self").symlink_to("self")
    (cat / "up").symlink_to(folder)
    (elsewhere / "back").symlink_to(elsewhere)
    os.mkfifo(cat / "pipe.jpg")
    source = load_source(folder)
    assert _names(source) == ["0.jpg", "1.jpg", "2.jpg", "file.jpg", "linked.jpg"]
    notes = "\n".join(source.notes)
    assert "2 broken links skipped" in notes
    assert "3 links to folders that are listed already skipped" in notes
    assert "pipe.jpg" in notes


def test_a_linked_class_folder_is_a_class(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "photos"
    for split in ("train", "val"):
        shutil.move(folder / split / "dog", elsewhere / split)
        (folder / split / "dog").symlink_to(elsewhere / split)
    source = load_source(folder)
    assert source.class_counts == (3, 3)


def test_a_link_must_not_put_images_into_two_classes_or_splits(folder):
    (folder / "train" / "cat" / "more").symlink_to(folder / "train" / "dog")
    with pytest.raises(ValueError, match="'dog' and, by a link, in class 'cat'"):
        load_source(folder)
    (folder / "train" / "cat" / "more").unlink()
    shutil.rmtree(folder / "val")
    (folder / "val").symlink_to(folder / "train")
    with pytest.raises(ValueError, match="splits must not share images"):
        load_source(folder, split="eval")


def test_a_class_folder_whose_name_is_not_text_is_named(folder):
    (folder / "train" / os.fsdecode(b"caf\xe9")).mkdir()
    with pytest.raises(ValueError, match=r"caf\\xe9 must be UTF-8"):
        load_source(folder)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a\nb"], "one line"),
        (["a\u2028b"], "one line"),
        ([" "], "not blank"),
        (["caf\u00e9", "cafe\u0301"], "rename one"),
    ],
)
def test_names_of_class_folders_must_serve_as_labels(folder, names, message):
    for name in names:
        (folder / "train" / name).mkdir()
    with pytest.raises(ValueError, match=message) as caught:
        load_source(folder)
    assert "\n" not in str(caught.value)


def test_accents_are_the_same_in_every_code_of_unicode(folder):
    (folder / "train" / "cat").rename(folder / "train" / "caf\u00e9")
    (folder / "val" / "cat").rename(folder / "val" / "cafe\u0301")
    assert load_source(folder, split="eval").class_names == ("caf\u00e9", "dog")


def test_a_class_without_readable_images_is_refused(folder):
    for path in (folder / "train" / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of the images of class 'dog'"):
        load_source(folder)


def test_class_folders_hold_what_lies_deeper(folder):
    (folder / "train" / "cat" / "2023" / "may").mkdir(parents=True)
    (folder / "train" / "cat" / "2023" / "may" / "deep.jpg").write_bytes(JPEG)
    assert load_source(folder).class_counts == (4, 3)


def _evaluate(source, to_float):
    dataset = evaluation_pipeline(source, image_size=8, batch_size=4, preprocess=to_float)
    return sum(len(labels) for _, labels in dataset)


@pytest.mark.parametrize("change", ["deleted", "text", "cut", "folder"])
def test_evaluation_goes_on_and_says_at_its_end_what_it_left_out(folder, change, caplog, to_float):
    source = load_source(folder, split="eval")
    path = pathlib.Path(source.paths[1])
    whole = path.read_bytes()
    path.unlink()
    if change == "folder":
        path.mkdir()
    elif change != "deleted":
        path.write_bytes(b"junk" if change == "text" else whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING):
        assert _evaluate(source, to_float) == 5
    assert caplog.messages[-1].startswith("evaluation left out 1 of 6 images")
    assert str(path) in caplog.messages[-1]


def test_training_goes_on_without_a_deleted_file(folder, to_float):
    source = load_source(folder)
    pathlib.Path(source.paths[1]).unlink()
    batches = training_pipeline(
        source, image_size=8, batch_size=6, seed=1, preprocess=to_float, augmentation="imagenet"
    )
    for images, _ in batches.take(2).as_numpy_iterator():
        assert np.all(images == 127.5, axis=(1, 2, 3)).sum() == 1


def test_an_evaluation_that_can_read_nothing_is_an_error(folder, to_float):
    source = load_source(folder, split="eval")
    for path in source.paths:
        pathlib.Path(path).unlink()
    with pytest.raises(Exception, match="none of the 6 images"):
        _evaluate(source, to_float)


def test_an_evaluation_whose_folder_is_gone_is_an_error(folder, to_float):
    source = load_source(folder, split="eval")
    shutil.rmtree(folder / "val")
    with pytest.raises(Exception, match=r"nor does its folder: is the disk of .* still there"):
        _evaluate(source, to_float)


_QUALITY = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}


@pytest.fixture
def turned(folder):
    """Images of every orientation and format in `val/cat`, as Pillow turns them, by path."""
    corners = np.zeros((32, 48, 3), np.uint8)
    corners[:16, :24], corners[:16, 24:], corners[16:, :24] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    expected = {}
    for image_format, quality in _QUALITY.items():
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            path = folder / "val" / "cat" / f"{image_format}{orientation}"
            Image.fromarray(corners).save(path, image_format, exif=exif, **quality)
            assert read_header(path).orientation == orientation
            with Image.open(path) as image:
                expected[str(path)] = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    return expected


def test_images_and_windows_are_turned_as_their_header_says(folder, turned):
    source = load_source(folder, split="eval")
    assert set(source.orientations) == set(range(1, 9))

    def window_of(shape):
        height, width = shape[0], shape[1]
        return tf.stack([height // 8, width // 2, height // 4, width // 4])

    decoded = source.ordered_examples().map(
        lambda stored, _: (source.decode(stored), source.decode(stored, window_of))
    )
    for (image, window), path in zip(decoded.as_numpy_iterator(), source.paths, strict=True):
        if path in turned:
            np.testing.assert_allclose(image, turned[path], atol=12)
            height, width, _ = image.shape
            inside = turned[path][height // 8 :][: height // 4, width // 2 :][:, : width // 4]
            np.testing.assert_allclose(window, inside, atol=12)


@pytest.mark.usefixtures("turned")
def test_turned_images_are_trained_on_and_evaluated_upright(folder, to_float):
    source = load_source(folder, split="eval")
    settings = {"image_size": (32, 48), "batch_size": 30, "preprocess": to_float}
    ((evaluated, _),) = evaluation_pipeline(source, **settings, crop_fraction=1.0)
    ((trained, _),) = training_pipeline(source, **settings, seed=1).take(1)
    # The top left corner of the upright image is the one in the image that Pillow turned.
    corners = {}
    for path, image in zip(source.paths, evaluated.numpy(), strict=True):
        orientation = int(path[-1]) if path[-1].isdigit() else 0
        corners.setdefault(orientation, []).append(np.rint(image[4, 4] / 250).astype(int).tolist())
    red, green, blue, black = [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]
    expected = (red, green, black, blue, red, blue, black, green)
    for orientation, corner in enumerate(expected, start=1):
        assert corners[orientation] == [corner] * len(_QUALITY)
    for image in evaluated.numpy():
        assert np.any(np.all(np.abs(trained.numpy() - image) < 1, axis=(1, 2, 3)))


def test_upright_images_keep_the_fast_decoding(folder):
    source = load_source(folder)
    assert source.orientations is None
    assert source.ordered_examples().element_spec[0].dtype == tf.string


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_a_header_may_end_anywhere(tmp_path, image_format):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = _encoded(image_format, exif=exif)
    path = tmp_path / "image"
    for cut in range(0, len(content) - 1, 5):
        path.write_bytes(content[:cut])
        # A GIF ends with one byte, which may also occur in its pixels.
        assert not read_header(path).is_sound or content[cut - 1] == ord(";")
    path.write_bytes(content)
    assert read_header(path).is_sound
