"""Splits in TFDS syntax, for data sets of any kind."""


def describe(lengths):
    """The splits of a data set in words.

    Args:
        lengths: dict, the number of images of each split.

    Returns:
        A string such as `"'train' (1437 images), 'test' (360 images)"`.
    """
    return ", ".join(f"'{name}' ({length} images)" for name, length in lengths.items())


def invalid_split(spec, lengths, dataset):
    """The message for a split that a data set does not have."""
    return (
        f"split '{spec}' of data set '{dataset}' is not valid: it has {describe(lengths)}; "
        f"slices look like 'train[:90%]' or 'train[45000:]'"
    )


def slice_of(spec, lengths, dataset):
    """Resolves a split such as `"train[:90%]"` to a range of examples.

    Args:
        spec: a split in TFDS syntax: a name, optionally with a slice in examples or percent.
        lengths: dict, the number of images of each split that the data set has.
        dataset: the data set's name, for the message.

    Returns:
        `(split name, slice)`.

    Raises:
        ValueError: `spec` is not valid, names no split of the data set or selects nothing.
    """
    import tensorflow_datasets as tfds

    infos = {
        name: tfds.core.SplitInfo(
            name=name, shard_lengths=[length], num_bytes=0, filename_template=None
        )
        for name, length in lengths.items()
    }
    try:
        (chosen,) = tfds.core.ReadInstruction.from_spec(spec).to_absolute(infos)
    except (ValueError, AssertionError, KeyError) as error:
        raise ValueError(invalid_split(spec, lengths, dataset)) from error
    start = 0 if chosen.from_ is None else chosen.from_
    stop = lengths[chosen.splitname] if chosen.to is None else chosen.to
    if stop <= start:
        raise ValueError(
            f"split '{spec}' of data set '{dataset}' holds no image: it has {describe(lengths)}"
        )
    return chosen.splitname, slice(start, stop)
