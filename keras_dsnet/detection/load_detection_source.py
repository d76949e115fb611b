"""Data sets with bounding boxes, opened by name, by folder or by file."""

import os
import pathlib
from collections.abc import Sequence

from keras_dsnet.data.digits import NAMES as DIGITS
from keras_dsnet.data.image_source import ImageSource, check_classes
from keras_dsnet.data.load_source import existing_folder
from keras_dsnet.detection.coco_json import find_coco_files, load_coco_folder, load_coco_json
from keras_dsnet.detection.record_source import is_joined_name, load_box_records
from keras_dsnet.detection.voc_folder import load_voc_folder


def load_detection_source(
    dataset: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    split: str = "train",
    *,
    train_split: str | None = None,
    eval_split: str | None = None,
    class_names: Sequence[str] | None = None,
    classes: int | None = None,
    on_bad_image: str = "skip",
    ranges: str | os.PathLike | None = None,
) -> ImageSource:
    """Opens a data set of images with bounding boxes.

    Nothing is downloaded.

    Args:
        dataset: A TFDS name such as `"voc/2007"`, `"voc/2012"` or `"coco/2017"`; two configurations
            of one data set, `"voc/2007+2012"`; the path of a folder in PASCAL VOC form; the path of
            a COCO json file, or of a folder that holds one for each split. An existing folder takes
            precedence over a TFDS name, unless TFDS prepared the folder.
        data_dir: Folder in which TFDS prepared the data set, by default the TFDS default folder. Of
            a COCO json file, the folder of its images, by default that of the file.
        split: `"train"` or `"eval"`. Defaults to `"train"`.
        train_split: Split to open for `"train"`, in TFDS syntax, such as `"trainval[:90%]"`.
            Defaults to the split `train`, else `trainval`; of PASCAL VOC in TFDS to
            `train+validation`, if its test split has boxes as in 2007. Images that `eval_split`
            names are left out of these defaults.
        eval_split: Split to open for `"eval"`. Defaults to the validation split of a folder if it
            trains on `train`, else its test split, else a tenth of the images, held out as the
            split `test`. Of a TFDS data set, defaults to the test split if that has boxes, else the
            validation split.
        class_names: Sequence of str, the classes in index order. Defaults to those of the data set:
            sorted by name in VOC form, by their ids in COCO form. Another name in an annotation is
            an error.
        classes: Int, number of classes of the network. Defaults to that of the data set.
        on_bad_image: `"skip"` to leave out images or annotations of a folder that are missing or
            cannot be read, with a line in `notes`, or `"raise"` to raise an error. Defaults to
            `"skip"`.
        ranges: Path of a text file that gives the splits of a folder in PASCAL VOC form as ranges
            of frames, a line `split first last` for each, in place of its lists. Defaults to None.

    Returns:
        `ImageSource` whose examples have a dict of boxes, for `detection_training_pipeline` and
        `detection_evaluation_pipeline`.

    Raises:
        ValueError: There is no such data set or split, it has no boxes, or a class is unknown.
        FileNotFoundError: The folder does not exist, or TFDS has not prepared the data set.
    """
    if split not in ("train", "eval"):
        raise ValueError(f"split must be 'train' or 'eval'. Received: '{split}'")
    if on_bad_image not in ("skip", "raise"):
        raise ValueError(f"on_bad_image must be 'skip' or 'raise'. Received: '{on_bad_image}'")
    dataset = str(dataset)
    names = _checked_names(class_names)
    specs = train_split, eval_split
    source = _open(dataset, data_dir, split, specs, names, on_bad_image, ranges)
    check_classes(dataset, source.num_classes, classes)
    return source


def _open(dataset, data_dir, split, specs, names, on_bad_image, ranges):
    if ranges is not None:
        folder = None if dataset.endswith(".json") else existing_folder(dataset)
        if folder is None or find_coco_files(folder):
            raise ValueError(
                f"`ranges` are for a folder in PASCAL VOC form. Received: ranges={str(ranges)!r} "
                f"with dataset={dataset!r}"
            )
        return load_voc_folder(folder, split, specs, names, on_bad_image, ranges)
    if dataset.endswith(".json"):
        path = pathlib.Path(dataset).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"COCO file {dataset} does not exist")
        images = None if data_dir is None else _image_folder(data_dir)
        return load_coco_json(path, images, split, specs, names, on_bad_image)
    is_folder = pathlib.Path(dataset).expanduser().is_dir()
    folder = None if is_joined_name(dataset) and not is_folder else existing_folder(dataset)
    if folder is None:
        if dataset in DIGITS:
            raise ValueError(
                f"data set '{dataset}' has no boxes; a detector needs a TFDS data set with boxes, "
                "such as 'voc/2007', a folder in PASCAL VOC form or a COCO json file"
            )
        source = load_box_records(dataset, data_dir, split, specs)
        if names is not None and tuple(names) != source.class_names:
            raise ValueError(
                f"`class_names` of '{dataset}' must be those of the data set: "
                f"{', '.join(source.class_names)}. Received: {', '.join(names)}"
            )
        return source
    files = find_coco_files(folder)
    if files:
        return load_coco_folder(folder, files, split, specs, names, on_bad_image)
    return load_voc_folder(folder, split, specs, names, on_bad_image)


def _image_folder(data_dir):
    folder = pathlib.Path(data_dir).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {data_dir} of the images does not exist")
    return folder


def _checked_names(class_names):
    if class_names is None:
        return None
    names = [str(name) for name in class_names]
    if isinstance(class_names, str) or not names or len(set(names)) < len(names):
        raise ValueError(
            f"`class_names` must be distinct names, one or more. Received: {class_names!r}"
        )
    return names
