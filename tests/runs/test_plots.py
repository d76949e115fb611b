"""Plots show the right numbers on labelled axes."""

import matplotlib
import numpy as np
import pytest

from keras_dsnet.runs.plots import (
    plot_accuracy_against_madds,
    plot_confidence_curve,
    plot_gallery,
    plot_reliability,
    plot_training_curves,
    plot_width_shares,
)

RHO = "\N{GREEK SMALL LETTER RHO}"
ROWS = [
    {"path": 1, "rho": 0.8, "madds": 300_000_000, "top1": 0.8, "top5": 0.9},
    {"path": 0, "rho": 0.35, "madds": 100_000_000, "top1": 0.7, "top5": 0.9},
    {"path": 2, "rho": 1.2, "madds": 500_000_000, "top1": 0.85, "top5": 0.9},
    {"path": "dynamic", "rho": None, "madds": 2.2e8, "top1": 0.82, "top5": 0.9},
]
LOG = """epoch,loss,widest_loss,val_top1_0,val_top1_10,val_top1_2,val_top1_dynamic
1,4,2,,,,
2,3,1,0.5,0.7,0.6,0.65
3,2,0.5,,,,
4,1,0.2,0.6,0.8,0.7,0.75
"""


def lines(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.lines}


def legend_words(legend):
    return [text.get_text() for text in legend.get_texts()]


def test_static_widths_are_a_line_and_the_dynamic_network_a_point(tmp_path):
    path = tmp_path / "not_there_yet" / "accuracy.png"
    figure = plot_accuracy_against_madds(ROWS, path, title="digits")
    (axes,) = figure.axes
    assert lines(axes) == {
        "static sub-networks": [[100, 70], [300, 80], [500, 85]],
        "dynamic network": [[220, 82]],
    }
    assert axes.get_xlabel() == "Multiply-adds per image (M MAdds)"
    assert axes.get_ylabel() == "Top-1 accuracy (%)"
    assert axes.get_title() == "digits"
    assert legend_words(figure.legends[0]) == ["static sub-networks", "dynamic network"]
    assert {text.get_text() for text in axes.texts} == {
        f"{RHO} = 0.35",
        f"{RHO} = 1.20",
        "82.0 % at 220M",
    }
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000
    assert list(path.parent.iterdir()) == [path]


def test_average_precision_is_drawn_like_accuracy(tmp_path):
    rows = [{"path": 0, "madds": 2e6, "map": 0.5}, {"path": 1, "madds": 4e6, "map": 0.7}]
    figure = plot_accuracy_against_madds(rows, tmp_path / "map.png", metric="map")
    (axes,) = figure.axes
    assert axes.get_ylabel() == "Mean average precision (%)"
    assert [list(line.get_ydata()) for line in axes.get_lines()] == [[50, 70]]
    with pytest.raises(ValueError, match=r"`metric` must be.*Received: metric='ap'"):
        plot_accuracy_against_madds(rows, tmp_path / "map.png", metric="ap")


def test_networks_off_the_line_are_points_of_their_own(tmp_path):
    rows = [*ROWS, ROWS[-1], {"path": "largest", "madds": 8e8, "top1": 0.86}]
    (axes,) = plot_accuracy_against_madds(rows, tmp_path / "accuracy.png").axes
    drawn = lines(axes)
    assert drawn["largest"] == [[800, 86]]
    assert drawn["dynamic network"] == [[220, 82]] * 2
    assert len(drawn["static sub-networks"]) == 3


def test_shares_stack_to_a_hundred_percent(tmp_path):
    gates = [{0.25: 0.5, 1.0: 0.5}, {0.25: 0.02, 0.5: 0.98}]
    figure = plot_width_shares(gates, tmp_path / "shares.png")
    (axes,) = figure.axes
    heights = np.array([[bar.get_height() for bar in bars] for bars in axes.containers])
    np.testing.assert_allclose(heights, [[50, 2], [0, 98], [50, 0]])
    bottoms = np.array([[bar.get_y() for bar in bars] for bars in axes.containers])
    np.testing.assert_allclose(bottoms, [[0, 0], [50, 2], [50, 100]])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["gate 1", "gate 2"]
    assert axes.get_ylabel() == "Share of images (%)"
    ratios = [f"{RHO} = {rho}" for rho in ("1.00", "0.50", "0.25")]
    assert legend_words(axes.get_legend()) == ratios
    assert [text.get_text() for text in axes.texts if text.get_text()] == ["50", "98", "50"]
    assert (tmp_path / "shares.png").stat().st_size > 5_000


def test_curves_show_every_width_and_loss(tmp_path):
    (tmp_path / "log.csv").write_text(LOG)
    figure = plot_training_curves(tmp_path / "log.csv", tmp_path / "curves.png")
    accuracy, loss = figure.axes
    assert lines(accuracy) == {
        "width 10": [[2, 70], [4, 80]],
        "width 2": [[2, 60], [4, 70]],
        "width 0": [[2, 50], [4, 60]],
        "dynamic": [[2, 65], [4, 75]],
    }
    assert legend_words(accuracy.get_legend()) == ["width 10", "width 2", "width 0", "dynamic"]
    assert lines(loss) == {
        "sum": [[1, 4], [2, 3], [3, 2], [4, 1]],
        "widest": [[1, 2], [2, 1], [3, 0.5], [4, 0.2]],
    }
    assert accuracy.get_ylabel() == "Top-1 accuracy (%)"
    assert (loss.get_xlabel(), loss.get_ylabel()) == ("Epoch", "Loss")
    assert len({line.get_color() for line in accuracy.lines}) == 4
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_curves_without_an_evaluation_show_the_losses(tmp_path):
    (tmp_path / "log.csv").write_text("epoch,loss\n1,2.5\n")
    (axes,) = plot_training_curves(tmp_path / "log.csv", tmp_path / "curves.svg").axes
    assert lines(axes) == {"sum": [[1, 2.5]]}
    assert (tmp_path / "curves.svg").read_text().startswith("<?xml")


def test_nothing_to_draw_is_refused_and_writes_nothing(tmp_path):
    target = tmp_path / "plot.png"
    with pytest.raises(ValueError, match="needs rows"):
        plot_accuracy_against_madds([], target)
    with pytest.raises(ValueError, match="needs gates"):
        plot_width_shares([], target)
    with pytest.raises(ValueError, match=r"log\.csv has no epochs"):
        plot_training_curves(tmp_path / "log.csv", target)
    assert not target.exists()


def test_plots_leave_the_users_matplotlib_alone(tmp_path):
    # Reading the backend through `rcParams[...]` would choose one.
    before = {name: dict.__getitem__(matplotlib.rcParams, name) for name in matplotlib.rcParams}
    plot_accuracy_against_madds(ROWS, tmp_path / "accuracy.png")
    after = {name: dict.__getitem__(matplotlib.rcParams, name) for name in matplotlib.rcParams}
    assert after == before


def test_every_routing_is_a_point_and_the_gate_a_curve(tmp_path):
    curve = [{"bias": bias, "madds": 1e8 * bias, "top1": 0.7} for bias in (1, 2)]
    rows = [
        *ROWS[:3],
        {"path": "gate", "madds": 2e8, "top1": 0.76, "curve": curve},
        {"path": "confidence", "madds": 2.5e8, "top1": 0.83},
        {"path": "gate+confidence", "madds": 2.6e8, "top1": 0.82},
    ]
    (axes,) = plot_accuracy_against_madds(rows, tmp_path / "accuracy.png").axes
    drawn = lines(axes)
    assert drawn["gate"] == [[200, 76]]
    assert drawn["confidence"] == [[250, 83]]
    assert drawn["gate+confidence"] == [[260, 82]]
    assert drawn["gate with a bias"] == [[100, 70], [200, 70]]


def test_a_confidence_curve_lies_over_the_static_line(tmp_path):
    rows = [
        {"thresholds": (0.0,), "madds": 1e8, "top1": 0.7, "line": 0.7, "chosen": False},
        {"thresholds": (0.6,), "madds": 2e8, "top1": 0.8, "line": 0.75, "chosen": True},
    ]
    figure = plot_confidence_curve(rows, tmp_path / "curve.png")
    (axes,) = figure.axes
    assert lines(axes) == {
        "line between the steps": [[100, 70], [200, 75]],
        "confidence": [[100, 70], [200, 80]],
        "threshold 0.60: 80.0 % at 200M": [[200, 80]],
    }
    (axes,) = plot_confidence_curve(rows, tmp_path / "curve.png", static=ROWS).axes
    assert lines(axes)["static sub-networks"] == [[100, 70], [300, 80], [500, 85]]
    with pytest.raises(ValueError, match="needs rows"):
        plot_confidence_curve([], tmp_path / "curve.png")


def test_a_reliability_diagram_shows_the_accuracy_at_each_confidence(tmp_path):
    confidence, correct = [0.05, 0.55, 0.6, 1.0], [False, True, False, True]
    axes, below = plot_reliability(confidence, correct, tmp_path / "reliability.png").axes
    bars = {round(bar.get_x(), 3): bar.get_height() for bar in axes.patches}
    assert bars == pytest.approx({0.0: 0, 0.5: 50, 0.9: 100})
    assert sum(bar.get_height() for bar in below.patches) == pytest.approx(100)
    # Weighted by images: 0.05 once, 0.075 twice, 0 once.
    assert axes.texts[0].get_text() == "calibration error 5.0 %"
    with pytest.raises(ValueError, match=r"Received: shapes \(2,\) and \(1,\)"):
        plot_reliability([0.5, 0.6], [True], tmp_path / "reliability.png")


def test_a_gallery_has_a_row_for_each_width_the_surest_image_first(tmp_path):
    images = np.full((5, 8, 8, 3), 128, "uint8")
    figure = plot_gallery(
        images,
        [13, 0, 0, 0, 13],
        labels=[0, 1, 1, 0, 1],
        predictions=[0, 1, 0, 0, 1],
        confidence=[0.5, 0.7, 0.8, 0.9, 0.6],
        path=tmp_path / "gallery.png",
        class_names=("cat", "dog"),
        columns=3,
    )
    texts = [(axes.get_title(), axes.get_xlabel()) for axes in figure.axes]
    assert texts == [
        ("cat", "90% sure"),
        ("dog\ntaken for cat", "80% sure"),
        ("dog", "70% sure"),
        ("dog", "60% sure"),
        ("cat", "50% sure"),
        ("", ""),
    ]
    assert figure.axes[0].get_ylabel() == "width 0\n60% of images"
    assert figure.axes[3].get_ylabel() == "width 13\n40% of images"
    with pytest.raises(ValueError, match="Received: 5, 1, 1, 1, 1 values"):
        plot_gallery(images, [0], [0], [0], [0.5], tmp_path / "gallery.png")


def test_names_are_drawn_as_they_are_and_only_their_ends_cut(tmp_path):
    # What matplotlib would take for a formula, and a long name without a space.
    names = ("$", "a$_$", "english_cocker_spaniel", "two\nlines")
    figure = plot_gallery(
        np.zeros((4, 8, 8, 3), "uint8"),
        [0] * 4,
        labels=[0, 1, 2, 3],
        predictions=[0, 1, 2, 3],
        confidence=[0.9, 0.8, 0.7, 0.6],
        path=tmp_path / "gallery.png",
        class_names=names,
        title="a $_$ b",
        columns=4,
    )
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["$", "a$_$", "english_cocker_...", "two lines"]
