"""Input pipelines in bare `tf.data`: the reference of `benchmark_input.py`.

They do what the pipelines of the package do, with the usual stateful random operations: nothing can
be resumed, and an image that cannot be read ends the stream. Nothing here uses this package.
RandAugment is KerasCV's layer; the other operations are written in TensorFlow.
"""

import math

import tensorflow as tf

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
ERASED_AREA, ERASED_ASPECT, ERASED_VALUE = (0.02, 0.33), (0.3, 1 / 0.3), 114.0
GRAY = 128.0
MAX_LEVEL, MAX_TRANSLATION = 9, 150 / 331


def read_folder(paths, labels, shuffle):
    """Returns a dataset of encoded images and labels from image files."""
    dataset = tf.data.Dataset.from_tensor_slices((paths, labels))
    if shuffle:
        dataset = dataset.shuffle(len(paths)).repeat()
    return dataset, tf.io.read_file


def read_records(filenames, num_examples, shuffle):
    """Returns a dataset of encoded images and labels from the TFRecords of TFDS."""
    features = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }

    def parse(record):
        example = tf.io.parse_single_example(record, features)
        return example["image"], tf.cast(example["label"], tf.int32)

    dataset = tf.data.TFRecordDataset(filenames)
    if shuffle:
        dataset = dataset.shuffle(num_examples).repeat()
    return dataset.map(parse), tf.identity


def training_pipeline(examples, image_size, batch_size, preprocess, augment=None):
    """Returns an endless stream of batches: inception crop, flip and further augmentation.

    Args:
        examples: Dataset of stored images and labels, and the function that reads one.
        image_size: Int, side of the images in pixels.
        batch_size: Int, images per batch.
        preprocess: Function from images from 0 to 255 to inputs of the network.
        augment: Function of a float32 image. Defaults to None.
    """
    dataset, read = examples

    def prepare(stored, label):
        encoded = read(stored)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(encoded),
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            min_object_covered=0.0,
            aspect_ratio_range=ASPECT,
            area_range=AREA,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        image = resize(tf.io.decode_and_crop_jpeg(encoded, window, channels=3), image_size)
        image = tf.image.random_flip_left_right(image)
        return preprocess(augment(image) if augment else image), label

    return _batched(dataset, prepare, batch_size)


def evaluation_pipeline(examples, image_size, batch_size, preprocess, crop_fraction=0.875):
    """Returns an endless stream of batches of the centres of the images, in order."""
    dataset, read = examples

    def prepare(stored, label):
        encoded = read(stored)
        shape = tf.io.extract_jpeg_shape(encoded)[:2]
        short = tf.cast(tf.reduce_min(shape), tf.float32)
        side = tf.cast(tf.round(short * crop_fraction), tf.int32)
        window = tf.concat([(shape - side) // 2, [side, side]], 0)
        image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3)
        return preprocess(resize(image, image_size)), label

    return _batched(dataset.repeat(), prepare, batch_size)


def _batched(dataset, prepare, batch_size):
    dataset = dataset.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def resize(image, image_size):
    """Resizes by an antialiased bicubic filter."""
    size = (image_size, image_size)
    image = tf.image.resize(image, size, method="bicubic", antialias=True)
    return tf.ensure_shape(tf.clip_by_value(image, 0.0, 255.0), (*size, 3))


def jitter_and_erase(strength, probability):
    """Returns a function that changes the colours of an image and may erase a rectangle."""

    def augment(image):
        image = tf.image.random_brightness(image / 255.0, strength / 2)
        image = tf.clip_by_value(image, 0.0, 1.0)
        image = tf.image.random_contrast(image, 1 - strength, 1 + strength)
        image = tf.clip_by_value(image, 0.0, 1.0)
        image = 255.0 * tf.image.random_saturation(image, 1 - strength, 1 + strength)
        return erase(image, probability)

    return augment


def erase(image, probability):
    """Fills a random rectangle of an image with gray."""
    draws = tf.random.uniform([5])
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    area = ERASED_AREA[0] + draws[0] * (ERASED_AREA[1] - ERASED_AREA[0])
    low, high = map(math.log, ERASED_ASPECT)
    aspect = tf.exp(low + draws[1] * (high - low))
    size = tf.sqrt(tf.reduce_prod(shape) * area * tf.stack([aspect, 1 / aspect]))
    size = tf.minimum(tf.round(size), shape)
    begin = tf.floor(draws[2:4] * (shape - size + 1))
    rows, columns = (tf.range(shape[axis]) - begin[axis] for axis in (0, 1))
    inside = ((rows >= 0) & (rows < size[0]))[:, None, None]
    inside &= ((columns >= 0) & (columns < size[1]))[None, :, None]
    return tf.where(inside & (draws[4] < probability), ERASED_VALUE, image)


def rand_augment(operations, magnitude):
    """Returns KerasCV's layer."""
    import keras_cv

    return keras_cv.layers.RandAugment((0, 255), operations, magnitude)


def auto_augment(sub_policies):
    """Returns a function that applies a random sub-policy to an image.

    Args:
        sub_policies: List of pairs of `(name, probability, level)`.
    """
    names = list(OPERATIONS)
    indices = tf.constant([[names.index(name) for name, _, _ in row] for row in sub_policies])
    chances = tf.constant([[chance for _, chance, _ in row] for row in sub_policies])
    levels = tf.constant([[level / MAX_LEVEL for *_, level in row] for row in sub_policies])

    def augment(image):
        row = tf.random.uniform([], 0, len(sub_policies), tf.int32)
        for slot in range(2):
            strength = levels[row, slot] * tf.where(tf.random.uniform([]) < 0.5, -1.0, 1.0)
            changes = [lambda x=image, k=strength, f=f: f(x, k) for f in OPERATIONS.values()]
            applies = tf.random.uniform([]) < chances[row, slot]
            index = tf.where(applies, indices[row, slot], len(changes))
            changed = tf.switch_case(index, [*changes, lambda x=image: x])
            image = tf.ensure_shape(changed, image.shape)
        return image

    return augment


def affine(image, shear_x=0.0, shear_y=0.0, move_x=0.0, move_y=0.0, angle=0.0):
    """Shears, moves or rotates an image about its centre."""
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
    cos, sin = tf.cos(angle), tf.sin(angle)
    x, y = (width - 1) / 2, (height - 1) / 2
    a, b, c, d = cos, -sin + shear_x, sin + shear_y, cos
    rows = [a, b, x - a * x - b * y + move_x * width, c, d, y - c * x - d * y + move_y * height]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[tf.newaxis],
        transforms=tf.stack([*rows, 0.0, 0.0])[tf.newaxis],
        output_shape=tf.shape(image)[:2],
        fill_value=GRAY,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )[0]


def blend(base, image, strength):
    """Moves an image away from or towards another one."""
    return tf.clip_by_value(base + (1 + 0.9 * strength) * (image - base), 0.0, 255.0)


def gray_of(image):
    return tf.image.rgb_to_grayscale(image)


def posterize(image, level):
    step = 2.0 ** tf.round(4 * tf.abs(level))
    return tf.floor(image / step) * step


def autocontrast(image):
    low = tf.reduce_min(image, (0, 1))
    high = tf.reduce_max(image, (0, 1))
    scale = 255.0 / tf.maximum(high - low, 1e-6)
    return tf.where(high > low, tf.clip_by_value((image - low) * scale, 0.0, 255.0), image)


def equalize(image):
    """Equalizes the histogram of each channel."""
    channels = []
    for channel in tf.unstack(tf.cast(image, tf.int32), axis=-1):
        counts = tf.math.bincount(tf.reshape(channel, [-1]), minlength=256, maxlength=256)
        last = tf.reduce_max(tf.where(counts > 0, tf.range(256), 0))
        step = (tf.reduce_sum(counts) - counts[last]) // 255
        table = (tf.cumsum(counts, exclusive=True) + step // 2) // tf.maximum(step, 1)
        table = tf.where(step > 0, tf.clip_by_value(table, 0, 255), tf.range(256))
        channels.append(tf.gather(table, channel))
    return tf.cast(tf.stack(channels, -1), tf.float32)


def sharpness(image, strength):
    kernel = tf.constant([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    kernel = tf.tile(kernel[:, :, None, None], [1, 1, 3, 1])
    smooth = tf.nn.depthwise_conv2d(image[tf.newaxis], kernel, [1] * 4, "VALID")
    border = [[1, 1], [1, 1], [0, 0]]
    inner = tf.pad(tf.ones_like(smooth[0]), border) > 0
    return blend(tf.where(inner, tf.pad(smooth[0], border), image), image, strength)


# Functions of an image and a level from -1 to 1.
OPERATIONS = {
    "shear_x": lambda image, level: affine(image, shear_x=0.3 * level),
    "shear_y": lambda image, level: affine(image, shear_y=0.3 * level),
    "translate_x": lambda image, level: affine(image, move_x=MAX_TRANSLATION * level),
    "translate_y": lambda image, level: affine(image, move_y=MAX_TRANSLATION * level),
    "rotate": lambda image, level: affine(image, angle=math.pi / 6 * level),
    "autocontrast": lambda image, level: autocontrast(image),
    "equalize": lambda image, level: equalize(image),
    "invert": lambda image, level: 255.0 - image,
    "solarize": lambda image, level: tf.where(
        image < 256.0 * (1 - tf.abs(level)), image, 255.0 - image
    ),
    "posterize": posterize,
    "contrast": lambda image, level: blend(tf.reduce_mean(gray_of(image)), image, level),
    "color": lambda image, level: blend(gray_of(image), image, level),
    "brightness": lambda image, level: blend(0.0, image, level),
    "sharpness": sharpness,
}
