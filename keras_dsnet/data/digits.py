"""The handwritten digits that come inside scikit-learn."""

import numpy as np
import tensorflow as tf

NUM_EVAL_EXAMPLES = 360
SPLIT_SEED = 0
_MAX_VALUE = 16.0


def load_digits():
    """Reads scikit-learn's handwritten digits and splits them.

    1797 images of 8x8 pixels by 43 writers, resized to 32x32 (bicubic) and repeated to three equal
    channels. The split is stratified by class and always the same (`SPLIT_SEED`): 1437 images to
    train on and 360 to evaluate on.

    Returns:
        `{"train": (images, labels), "test": (images, labels)}`: uint8 `[examples, 32, 32, 3]` and
        int32 `[examples]`.

    Raises:
        ValueError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as sklearn_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ValueError(
            "data set 'digits' is part of scikit-learn, which is not installed: "
            "run `pip install scikit-learn`"
        ) from error
    values, labels = sklearn_digits(return_X_y=True)
    gray = values.reshape(-1, 8, 8, 1).astype(np.float32) * (255.0 / _MAX_VALUE)
    resized = tf.image.resize(gray, (32, 32), method="bicubic", antialias=True).numpy()
    images = np.repeat(np.clip(np.rint(resized), 0, 255).astype(np.uint8), 3, axis=-1)
    labels = labels.astype(np.int32)
    train, test = train_test_split(
        np.arange(len(labels)),
        test_size=NUM_EVAL_EXAMPLES,
        random_state=SPLIT_SEED,
        stratify=labels,
    )
    return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}
