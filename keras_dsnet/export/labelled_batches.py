"""Batches of a data set that a user passes, from its beginning again where it ends."""

from keras_dsnet.utils import batches


def labelled_batches(dataset, shape, classes, count):
    """Yields batches of a data set, from its beginning again where it ends.

    Args:
        dataset: as of `keras_dsnet.utils.batches.labelled_batches`.
        shape: `(height, width, 3)` of the images.
        classes: int.
        count: int, how many batches.

    Yields:
        Tensors: images, float32, and labels: int32 `[batch]` or float32 `[batch, classes]`.

    Raises:
        ValueError: on a batch that does not fit, or where there is none left.
    """
    number = 0
    while number < count:
        first = number
        for batch in batches.labelled_batches(dataset, shape, classes, count - number):
            number += 1
            yield batch
        if number == first:
            raise ValueError(
                f"`dataset` has no batches: it ended after {number}. An iterator can be read only "
                "once: pass what makes one."
            )
