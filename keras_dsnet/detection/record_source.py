"""TFDS data sets with bounding boxes, as an image source."""

import os
import re
from typing import Any

import tensorflow as tf

from keras_dsnet.data.image_source import ImageSource, describe_splits, invalid_split
from keras_dsnet.data.tfds_source import RecordSource, prepared_builder

# "voc/2007+2012": two configurations of one data set, trained on together.
_JOINED = re.compile(r"(\w+)/([\w.]+)\+([\w.]+)")
# PASCAL VOC is trained on its two first splits together, and tested on the third.
_DEFAULT_SPLITS = {"train": ("train+validation", "train"), "eval": ("test", "validation")}


def is_joined_name(name: str) -> bool:
    """Returns whether a name joins two configurations, as `"voc/2007+2012"` does."""
    return _JOINED.fullmatch(name) is not None


def load_box_records(
    name: str,
    data_dir: str | os.PathLike | None,
    split: str,
    specs: tuple[str | None, str | None],
) -> "BoxRecordSource":
    """Opens a prepared TFDS data set with boxes, such as `"voc/2007"` or `"voc/2007+2012"`.

    PASCAL VOC is trained on its splits `train` and `validation` where it also has a test split with
    boxes. A joined data set is trained on both splits of both years, and evaluated on the test
    split of the first year that has one.

    Args:
        name: Str, TFDS name.
        data_dir: Folder in which TFDS prepared the data set. None for the TFDS default folder.
        split: `"train"` or `"eval"`.
        specs: Pair of str or None, splits in TFDS syntax of training and of evaluation that
            override the default ones. By default, what evaluation names is not trained on. Parts
            of a split without boxes, such as the test images of 2012, are left out with a note.

    Returns:
        `BoxRecordSource`.

    Raises:
        ValueError: There is no such data set or split, it has no boxes, or evaluation names a slice
            of what is trained on by default.
        FileNotFoundError: The data set is not prepared in `data_dir`.
    """
    joined = _JOINED.fullmatch(name)
    names = [f"{joined[1]}/{joined[2]}", f"{joined[1]}/{joined[3]}"] if joined else [name]
    builders = [prepared_builder(each, data_dir) for each in names]
    features = [_checked_features(*pair) for pair in zip(names, builders, strict=True)]
    if len({tuple(classes) for _, classes in features}) > 1:
        raise ValueError(f"the data sets {' and '.join(names)} must have the same classes")
    lengths = [
        {key: value.num_examples for key, value in builder.info.splits.items()}
        for builder in builders
    ]
    spec, held_out = specs if split == "train" else specs[::-1]
    notes: tuple[str, ...] = ()
    if spec:
        chosen, notes = _specified(spec, builders, lengths, names)
    else:
        chosen = _default(split, builders, lengths, name, is_joined=joined is not None)
        if split == "train" and held_out:
            chosen = _without(held_out, chosen, name)
    class_names = features[0][1]
    source = BoxRecordSource(name, chosen, class_names)
    source.notes = notes
    return source


def _checked_features(name, builder):
    import tensorflow_datasets as tfds

    by_name = dict(builder.info.features.items())
    objects = getattr(by_name.get("objects"), "feature", None)
    parts = dict(objects.items()) if isinstance(objects, tfds.features.FeaturesDict) else {}
    label = parts.get("label")
    if "image" not in by_name or "bbox" not in parts or not getattr(label, "num_classes", None):
        raise ValueError(
            f"data set '{name}' must have an 'image' and 'objects' with 'bbox' and 'label' among "
            f"its features. Received: {', '.join(sorted(by_name))}"
        )
    return parts, label.names


def _specified(spec, builders, lengths, names):
    """Returns `(builder, split)` of the parts of a split that have boxes, and notes on others."""
    chosen, notes, absent = [], [], []
    for builder, splits, name in zip(builders, lengths, names, strict=True):
        kept = []
        for part in _parts(spec, splits):
            if len(builders) > 1 and _name_of(part) not in splits:
                absent.append(f"'{name}' has no split '{_name_of(part)}'")
                continue
            try:
                is_empty = not builder.info.splits[part].num_examples
            except (ValueError, AssertionError, KeyError) as error:
                raise ValueError(invalid_split(part, splits, name)) from error
            if is_empty:
                raise ValueError(
                    f"split '{part}' of '{name}' holds no image: it has {describe_splits(splits)}"
                )
            # The test split of a challenge has images without their boxes.
            if _has_boxes(builder, part):
                kept.append(part)
            else:
                notes.append(f"split '{part}' of '{name}' has no boxes and is left out")
        if kept:
            chosen.append((builder, "+".join(kept)))
    if not chosen:
        raise ValueError(
            f"split '{spec}' of '{' and '.join(names)}' has no image with boxes: "
            f"{(notes or absent)[0]}"
        )
    return chosen, (*notes, *absent)


def _parts(spec, splits):
    """Returns the parts of a split in TFDS syntax, such as those of "train+test[:50%]"."""
    parts = [part.strip() for part in spec.split("+")]
    return [each for part in parts for each in (list(splits) if part == "all" else [part])]


def _name_of(part):
    return part.split("[")[0].strip()


def _without(held_out, chosen, name):
    """Returns the parts that are trained on by default, without splits that evaluation names."""
    kept = []
    for builder, spec in chosen:
        splits = {key: value.num_examples for key, value in builder.info.splits.items()}
        evaluated = _parts(held_out, splits)
        parts = [part for part in spec.split("+") if part not in evaluated]
        sliced = [part for part in evaluated if _name_of(part) in parts]
        if sliced or not parts:
            raise ValueError(
                f"split '{held_out}' of '{name}' is a part of '{spec}', which is trained on by "
                "default: pass train_split to choose the other images"
            )
        kept.append((builder, "+".join(parts)))
    return kept


def _default(split, builders, lengths, name, is_joined):
    chosen = []
    for builder, splits in zip(builders, lengths, strict=True):
        for spec in _DEFAULT_SPLITS[split]:
            # A validation split is trained on only if another split is left for evaluation. The
            # test split of 2012 has no boxes.
            spare = is_joined or (
                "test" in splits and builder.name == "voc" and _has_boxes(builder, "test")
            )
            if "+" in spec and not spare:
                continue
            if all(part in splits for part in spec.split("+")) and _has_boxes(builder, spec):
                chosen.append((builder, spec))
                break
    if split == "eval" and is_joined:
        # The training splits of a joined data set take in every validation split.
        chosen = [(builder, spec) for builder, spec in chosen if spec == "test"][:1]
    if not chosen:
        raise ValueError(
            f"data set '{name}' has no split for {split} with boxes: it has "
            f"{describe_splits(lengths[0])}; pass {split}_split to choose one"
        )
    return chosen


def _has_boxes(builder, spec):
    """Returns whether one of the first images has a box: a challenge's test split has none."""
    import tensorflow_datasets as tfds

    decoders = {"image": tfds.decode.SkipDecoding()}
    config = tfds.ReadConfig(try_autocache=False)
    first = builder.as_dataset(split=spec, decoders=decoders, read_config=config).take(8)
    return any(len(example["objects"]["label"]) for example in first)


class BoxRecordSource(RecordSource):
    """Encoded images with boxes in the TFRecord files of TFDS data sets, which are streamed.

    Its examples have a dict of the arrays of `box_source.Objects` in the place of a label.

    Args:
        name: Str, name of the data set, for messages.
        parts: Sequence of `(builder, split)`, prepared `tfds.core.DatasetBuilder` objects with
            their splits in TFDS syntax. Their images are shuffled together.
        class_names: Sequence of str, one name per class in index order.

    Raises:
        ValueError: A data set is not stored as TFRecords.
    """

    max_boxes = None

    def __init__(self, name: str, parts: list[tuple[Any, str]], class_names: list[str]) -> None:
        splits = list(dict.fromkeys(split for _, split in parts))
        ImageSource.__init__(
            self,
            name,
            sum(builder.info.splits[split].num_examples for builder, split in parts),
            len(class_names),
            class_names,
            split=" and ".join(splits),
        )
        self._open_files(parts)
        self._read_features(parts[0][0])

    def _read_features(self, builder):
        import tensorflow_datasets as tfds

        features = builder.info.features
        objects = dict(features["objects"].feature.items())
        kept = {
            key: objects[key]
            for key in ("bbox", "label", "is_difficult", "is_crowd", "area")
            if key in objects
        }
        self._features = tfds.features.FeaturesDict(
            {"image": features["image"], "objects": tfds.features.Sequence(kept)}
        )
        self._decoders = {"image": tfds.decode.SkipDecoding()}

    def _parse(self, record):
        example = self._features.deserialize_example(record, decoders=self._decoders)
        objects = example["objects"]
        boxes = tf.clip_by_value(tf.cast(objects["bbox"], tf.float32), 0.0, 1.0)
        sides = boxes[:, 2:] - boxes[:, :2]
        no = tf.zeros(tf.shape(boxes)[:1], tf.bool)
        columns = {
            "boxes": boxes,
            "classes": tf.cast(objects["label"], tf.int32),
            "difficult": tf.cast(objects.get("is_difficult", no), tf.bool),
            "crowd": tf.cast(objects.get("is_crowd", no), tf.bool),
            "areas": tf.reduce_prod(sides, axis=-1),
        }
        if "area" in objects:
            # COCO counts the pixels of an object, which are fewer than those of its box.
            columns["areas"] = _relative_areas(example["image"], objects["area"], columns["areas"])
        has_area = tf.reduce_all(sides > 0, axis=-1)
        return example["image"], {
            key: tf.boolean_mask(column, has_area) for key, column in columns.items()
        }


def _relative_areas(image, areas, of_boxes):
    """Returns areas in pixels as shares of the image, those of the boxes if it is no JPEG."""

    def stated():
        shape = tf.io.extract_jpeg_shape(image)
        return tf.cast(areas, tf.float32) / tf.cast(shape[0] * shape[1], tf.float32)

    return tf.cond(tf.io.is_jpeg(image), stated, lambda: of_boxes)
