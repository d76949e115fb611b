"""AutoAugment (Cubuk et al., CVPR 2019, arXiv:1805.09501) as a function of a seed.

A policy is a list of sub-policies, one of which is drawn for each image. A sub-policy has two
operations, each written `name probability level`, with levels from 0 to 9.
"""

import functools
import math

import keras
import tensorflow as tf

_MAX_LEVEL = 9
_GRAY = 128.0
# The paper moves images of 331 pixels by at most 150.
_MAX_TRANSLATION = 150 / 331

AUTO_AUGMENT_POLICIES = {
    # Table 9 of the paper.
    "imagenet": """
        posterize 0.4 8, rotate 0.6 9
        solarize 0.6 5, autocontrast 0.6 5
        equalize 0.8 8, equalize 0.6 3
        posterize 0.6 7, posterize 0.6 6
        equalize 0.4 7, solarize 0.2 4
        equalize 0.4 4, rotate 0.8 8
        solarize 0.6 3, equalize 0.6 7
        posterize 0.8 5, equalize 1.0 2
        rotate 0.2 3, solarize 0.6 8
        equalize 0.6 8, posterize 0.4 6
        rotate 0.8 8, color 0.4 0
        rotate 0.4 9, equalize 0.6 2
        equalize 0.0 7, equalize 0.8 8
        invert 0.6 4, equalize 1.0 8
        color 0.6 4, contrast 1.0 8
        rotate 0.8 8, color 1.0 2
        color 0.8 8, solarize 0.8 7
        sharpness 0.4 7, invert 0.6 8
        shear_x 0.6 5, equalize 1.0 9
        color 0.4 0, equalize 0.6 3
        equalize 0.4 7, solarize 0.2 4
        solarize 0.6 5, autocontrast 0.6 5
        invert 0.6 4, equalize 1.0 8
        color 0.6 4, contrast 1.0 8
        equalize 0.8 8, equalize 0.6 3
    """,
    # Table 7 of the paper.
    "cifar10": """
        invert 0.1 7, contrast 0.2 6
        rotate 0.7 2, translate_x 0.3 9
        sharpness 0.8 1, sharpness 0.9 3
        shear_y 0.5 8, translate_y 0.7 9
        autocontrast 0.5 8, equalize 0.9 2
        shear_y 0.2 7, posterize 0.3 7
        color 0.4 3, brightness 0.6 7
        sharpness 0.3 9, brightness 0.7 9
        equalize 0.6 5, equalize 0.5 1
        contrast 0.6 7, sharpness 0.6 5
        color 0.7 7, translate_x 0.5 8
        equalize 0.3 7, autocontrast 0.4 8
        translate_y 0.4 3, sharpness 0.2 6
        brightness 0.9 6, color 0.2 8
        solarize 0.5 2, invert 0.0 3
        equalize 0.2 0, autocontrast 0.6 0
        equalize 0.2 8, equalize 0.6 4
        color 0.9 9, equalize 0.6 6
        autocontrast 0.8 4, solarize 0.2 8
        brightness 0.1 3, color 0.7 0
        solarize 0.4 5, autocontrast 0.9 3
        translate_y 0.9 9, translate_y 0.7 9
        autocontrast 0.9 2, solarize 0.8 3
        equalize 0.8 8, invert 0.1 3
        translate_y 0.7 9, autocontrast 0.9 1
    """,
}


def auto_augment(image, seed, policy, library):
    """Applies one random sub-policy of an AutoAugment policy.

    Args:
        image: float32 tensor `[height, width, 3]`, from 0 to 255.
        seed: Int tensor `[2]`.
        policy: Name of a policy in `AUTO_AUGMENT_POLICIES`.
        library: Dict of the operations that another library provides: `equalize` and
            `autocontrast`, functions of an image, and `sharpness`, a function of an image and a
            factor, where the factor 1 changes nothing.

    Returns:
        float32 tensor `[height, width, 3]`, from 0 to 255.
    """
    operations = _operations(library)
    names = list(operations)
    sub_policies = _parse(AUTO_AUGMENT_POLICIES[policy])
    indices = tf.constant([[names.index(name) for name, _, _ in row] for row in sub_policies])
    chances = tf.constant([[chance for _, chance, _ in row] for row in sub_policies])
    levels = tf.constant([[level / _MAX_LEVEL for _, _, level in row] for row in sub_policies])
    choice_seed, chance_seed, sign_seed = tf.unstack(tf.random.split(seed, 3))
    row = tf.random.stateless_uniform([], choice_seed, 0, len(sub_policies), tf.int32)
    applies = tf.random.stateless_uniform([2], chance_seed) < chances[row]
    signs = tf.where(tf.random.stateless_uniform([2], sign_seed) < 0.5, -1.0, 1.0)

    # A separate function is traced once for both operations of a sub-policy.
    @tf.function
    def operate(image, index, level, sign):
        changes = [functools.partial(change, image, level, sign) for change in operations.values()]
        changed = tf.switch_case(index, [*changes, lambda: image])
        return tf.ensure_shape(changed, image.shape)

    for slot in range(2):
        index = tf.where(applies[slot], indices[row, slot], len(operations))
        image = operate(image, index, levels[row, slot], signs[slot])
    return image


def _parse(text):
    """Returns a policy's text as `[[(name, probability, level), (...)], ...]`."""
    return [
        [
            (name, float(chance), float(level))
            for name, chance, level in (operation.split() for operation in line.split(","))
        ]
        for line in text.strip().splitlines()
    ]


def _operations(library):
    """Returns the paper's operations (Table 6), functions of an image, a level and a sign.

    The level is from 0 to 1.
    """
    return {
        "shear_x": lambda image, level, sign: _affine(image, shear_x=0.3 * level * sign),
        "shear_y": lambda image, level, sign: _affine(image, shear_y=0.3 * level * sign),
        "translate_x": lambda image, level, sign: _affine(
            image, move_x=_MAX_TRANSLATION * level * sign
        ),
        "translate_y": lambda image, level, sign: _affine(
            image, move_y=_MAX_TRANSLATION * level * sign
        ),
        "rotate": lambda image, level, sign: _affine(image, angle=math.pi / 6 * level * sign),
        "autocontrast": lambda image, level, sign: library["autocontrast"](image),
        "equalize": lambda image, level, sign: library["equalize"](image),
        "invert": lambda image, level, sign: 255.0 - image,
        "solarize": lambda image, level, sign: tf.where(
            image < 256.0 * (1 - level), image, 255.0 - image
        ),
        "posterize": lambda image, level, sign: _posterize(image, 8 - tf.round(4 * level)),
        "contrast": lambda image, level, sign: _blend(
            tf.reduce_mean(tf.image.rgb_to_grayscale(image)), image, level * sign
        ),
        "color": lambda image, level, sign: _blend(
            tf.image.rgb_to_grayscale(image), image, level * sign
        ),
        "brightness": lambda image, level, sign: _blend(0.0, image, level * sign),
        "sharpness": lambda image, level, sign: library["sharpness"](image, 1 + 0.9 * level * sign),
    }


def _blend(base, image, strength):
    # The factor is from 0.1 to 1.9. A factor of 1 is the image, and 0 would be the base.
    return tf.clip_by_value(base + (1 + 0.9 * strength) * (image - base), 0.0, 255.0)


def _posterize(image, bits):
    step = 2.0 ** (8 - bits)
    return tf.floor(image / step) * step


def _affine(image, shear_x=0.0, shear_y=0.0, move_x=0.0, move_y=0.0, angle=0.0):
    """Shears, moves or rotates an image about its centre.

    `move_x` and `move_y` are fractions of the side; `angle` is in radians.
    """
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
    cos, sin = tf.cos(angle), tf.sin(angle)
    to_x = tf.stack([cos, -sin + shear_x])
    to_y = tf.stack([sin + shear_y, cos])
    centre = tf.stack([width - 1, height - 1]) / 2
    offset_x = centre[0] - tf.tensordot(to_x, centre, 1) + move_x * width
    offset_y = centre[1] - tf.tensordot(to_y, centre, 1) + move_y * height
    transform = tf.stack([to_x[0], to_x[1], offset_x, to_y[0], to_y[1], offset_y, 0.0, 0.0])
    return keras.ops.image.affine_transform(
        image, transform, interpolation="bilinear", fill_mode="constant", fill_value=_GRAY
    )
