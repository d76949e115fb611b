"""Plots of detection: curves of precision, sheets of images with boxes."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_dsnet.detection.average_precision import average_precision
from keras_dsnet.utils.figures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Nearly everybody can distinguish these colours (Okabe and Ito).
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LABELLED_CURVES = 12
_INCHES = 2.6


def plot_precision_recall(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    path: str | os.PathLike,
    title: str | None = None,
) -> "Figure":
    """Plots precision against recall, a line for each class.

    Args:
        curves: Dict of `DetectionMetric.curves`, from names to recalls and precisions.
        path: Path of the image file. Its suffix is the format.
        title: String, title of the plot. Optional.

    Returns:
        `matplotlib.figure.Figure`. Its legend names the classes with their AP (area), at most 12 of
        them: the 6 best and the 6 worst.

    Raises:
        ValueError: No class has an object.
    """
    known = {name: curve for name, curve in curves.items() if len(curve[0])}
    if not known:
        raise ValueError("A plot of precision needs a class with objects. Received: none")
    order = sorted(known, key=lambda name: -_area(known[name]))
    labelled = order
    if len(order) > _LABELLED_CURVES:
        labelled = [*order[: _LABELLED_CURVES // 2], *order[-_LABELLED_CURVES // 2 :]]
    figure = new_figure(6.4, 4.6)
    axes = figure.add_subplot(xlabel="Recall", ylabel="Precision", title=title)
    for name in order:
        recall, precision = known[name]
        if name in labelled:
            number = labelled.index(name)
            style: dict[str, Any] = {
                "color": _COLORS[number % len(_COLORS)],
                "linestyle": ("-", "--")[number // len(_COLORS) % 2],
                "label": f"{name} ({100 * _area(known[name]):.1f})",
            }
        else:
            style = {"color": "#bbbbbb", "linewidth": 0.8, "zorder": 1}
        axes.step([0.0, *recall], [precision[0], *precision], where="post", **style)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, title="AP (area, %)")
    return save_figure(figure, path)


def _area(curve):
    return average_precision(*curve) or 0.0


def plot_detections(
    images: Any,
    objects: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    path: str | os.PathLike,
    targets: Sequence[Mapping[str, Any]] | None = None,
    columns: int = 4,
    score_threshold: float = 0.3,
) -> "Figure":
    """Plots a sheet of images with the boxes of objects drawn on them.

    Args:
        images: Array `[batch, height, width, 3]`, RGB from 0 to 255.
        objects: Sequence with a dict for each image: `"boxes"`, `[n, 4]` in the format
            `"rel_yxyx"`, `"classes"`, `[n]`, where -1 is padding, and optionally `"scores"`, `[n]`.
        class_names: Sequence of str, one name per class in index order.
        path: Path of the image file. Its suffix is the format.
        targets: Sequence of such dicts with the true boxes, drawn as thin white lines. Optional.
        columns: Int, images in a row. Defaults to 4.
        score_threshold: Float, the lowest score that is drawn. Defaults to 0.3.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: There are no images, or not one dict for each.
    """
    images = np.clip(np.asarray(images), 0, 255).astype(np.uint8)
    if not len(images) or len(objects) != len(images):
        raise ValueError(
            f"`objects` must have a dict for each image. Received: {len(objects)} dicts for "
            f"{len(images)} images"
        )
    rows = math.ceil(len(images) / columns)
    figure = new_figure(_INCHES * min(columns, len(images)), _INCHES * rows)
    for index, image in enumerate(images):
        axes = figure.add_subplot(rows, min(columns, len(images)), index + 1)
        axes.imshow(image)
        axes.set_axis_off()
        if targets is not None:
            _draw(axes, targets[index], image.shape, lambda label, score: ("white", 0.8, None))
        style = _styles(class_names, score_threshold)
        _draw(axes, objects[index], image.shape, style)
    return save_figure(figure, path)


def _styles(class_names, score_threshold):
    def style(label, score):
        if score is not None and score < score_threshold:
            return None
        text = class_names[label] if score is None else f"{class_names[label]} {score:.2f}"
        return _COLORS[label % len(_COLORS)], 1.4, text

    return style


def _draw(axes, objects, shape, style_of):
    from matplotlib.patches import Rectangle

    scale = np.array([shape[0], shape[1]] * 2)
    scores = objects.get("scores")
    for index, label in enumerate(np.asarray(objects["classes"]).astype(int)):
        style = None
        if label >= 0:
            style = style_of(label, None if scores is None else float(scores[index]))
        if style is None:
            continue
        color, width, text = style
        # The centre of the first pixel is at 0.
        top, left, bottom, right = np.asarray(objects["boxes"])[index] * scale - 0.5
        axes.add_patch(
            Rectangle(
                (left, top), right - left, bottom - top, fill=False, color=color, linewidth=width
            )
        )
        if text is not None:
            box = {"facecolor": color, "edgecolor": "none", "pad": 0.8}
            axes.text(left, top, text, color="white", fontsize=5, va="bottom", bbox=box)
