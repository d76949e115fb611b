"""Where the anchors of a detector are, for images of several sizes."""

import numpy as np
import pytest

from keras_dsnet.detection.anchors import default_aspect_ratios, default_scales, level_anchors
from keras_dsnet.detection.fssd_head import pyramid_sizes


def centres_of_levels(height, width):
    """Returns the rows and columns of the anchors of each level, in pixels, and the maps."""
    sizes = pyramid_sizes((-(-height // 8), -(-width // 8)))
    ratios = default_aspect_ratios(len(sizes))
    anchors = level_anchors((height, width), sizes, default_scales(len(sizes)), ratios)
    centres, levels = (anchors[:, :2] + anchors[:, 2:]) / 2 * [height, width], []
    for (rows, columns), ratio in zip(sizes, ratios, strict=True):
        shape = (rows, columns, 2 + 2 * len(ratio), 2)
        level, centres = np.split(centres, [np.prod(shape[:3])])
        level = level.reshape(shape)
        np.testing.assert_allclose(level, np.broadcast_to(level[:, :, :1], shape), atol=1e-3)
        levels.append((level[:, 0, 0, 0], level[0, :, 0, 1]))
    assert not len(centres)
    return levels, sizes


@pytest.mark.parametrize(
    ("pixels", "steps"),
    [
        # Those of the authors' Caffe code, `steps` of ssd_pascal.py and ssd_pascal_512.py.
        (300, (8, 16, 32, 64, 100, 300)),
        (512, (8, 16, 32, 64, 128, 256, 512)),
        # The steps of 64 and 128 pixels would reach a seventh beyond the image.
        (224, (8, 16, 32, 56, 112, 224)),
    ],
)
def test_steps_of_square_images(pixels, steps):
    levels, sizes = centres_of_levels(pixels, pixels)
    for (rows, columns), (count, _), step in zip(levels, sizes, steps, strict=True):
        np.testing.assert_allclose(rows, (np.arange(count) + 0.5) * step, rtol=1e-4)
        np.testing.assert_allclose(columns, rows, rtol=1e-6)


@pytest.mark.parametrize("size", [(320, 480), (300, 400), (64, 400), (480, 480)])
def test_each_axis_has_its_own_steps(size):
    levels, sizes = centres_of_levels(*size)
    assert sizes[-1] == (1, 1)
    for level, counts in zip(levels, sizes, strict=True):
        for centres, pixels, count in zip(level, size, counts, strict=True):
            if count == 1:
                assert centres == pytest.approx([pixels / 2], rel=1e-4)
            # The steps cover the axis, and reach at most a tenth beyond it.
            step = 2 * centres[0]
            np.testing.assert_allclose(np.diff(centres), step, rtol=1e-3)
            assert pixels * (1 - 1e-4) <= count * step <= pixels * (1.1 + 1e-4)
            assert count == 1 or step * (count - 1) < pixels


def test_levels_without_a_shared_step_have_anchors():
    # Positions of convolutions without padding, 37 and 55, divide the image evenly.
    anchors = level_anchors((300, 450), [(37, 55)], (0.1, 0.2), ((2,),))
    centres = ((anchors[:, :2] + anchors[:, 2:]) / 2).reshape(37, 55, 4, 2)
    np.testing.assert_allclose(centres[:, 0, 0, 0], (np.arange(37) + 0.5) / 37, rtol=1e-4)
    np.testing.assert_allclose(centres[0, :, 0, 1], (np.arange(55) + 0.5) / 55, rtol=1e-4)
