"""Generated objects and detections, for tests of the average precision."""

import numpy as np

HEIGHT, WIDTH = 400, 500
CLASSES = ("a", "b", "c")


def scenes(seed, images=40):
    """Returns pairs of a target and detections, of several sizes, with misses and doubles."""
    generator = np.random.default_rng(seed)
    return [_scene(generator) for _ in range(images)]


def _scene(generator):
    scale = np.array([HEIGHT, WIDTH, HEIGHT, WIDTH])
    count = generator.integers(1, 7)
    begin = generator.integers(0, [HEIGHT - 60, WIDTH - 60], (count, 2))
    size = generator.integers(8, [200, 250], (count, 2))
    boxes = np.concatenate([begin, np.minimum(begin + size, scale[:2])], axis=1).astype(float)
    classes = generator.integers(0, len(CLASSES), count)
    copies = generator.integers(0, 4, count)
    found = np.repeat(boxes, copies, axis=0)
    found += generator.normal(0, 8, found.shape)
    wrong = generator.uniform(0, 300, (generator.integers(1, 4), 2))
    wrong = np.concatenate([wrong, wrong + generator.uniform(5, 90, wrong.shape)], axis=1)
    found = np.clip(np.concatenate([found, wrong]), 0, scale)
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
    labels = generator.integers(0, len(CLASSES), len(wrong))
    target = {
        "boxes": boxes / scale,
        "classes": classes,
        "difficult": generator.random(count) < 0.2,
        "image_size": np.array([HEIGHT, WIDTH]),
    }
    detections = {
        "boxes": found / scale,
        "classes": np.concatenate([np.repeat(classes, copies), labels]),
        "scores": generator.permutation(len(found) * 10)[: len(found)] / (len(found) * 10)
        + generator.random(len(found)) * 0.01,
    }
    return target, detections
