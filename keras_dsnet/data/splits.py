"""TFDS split syntax for data sets that are not TFDS data sets."""


def slice_of(spec, lengths, dataset):
    """Resolves a split such as `"train[:90%]"` to a range of examples.

    Args:
        spec: a split in TFDS syntax: a name, optionally with a slice in examples or percent.
        lengths: dict, the number of examples of each split the data set has.
        dataset: the data set's name, for the message.

    Returns:
        `(split name, slice)`.

    Raises:
        ValueError: `spec` is not valid, names no split of the data set or selects nothing.
    """
    import tensorflow_datasets as tfds

    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[length], num_bytes=0)
        for name, length in lengths.items()
    }
    splits = ", ".join(f"'{name}' ({length} images)" for name, length in lengths.items())
    try:
        instructions = tfds.core.ReadInstruction.from_spec(spec).to_absolute(infos)
    except Exception as error:
        raise ValueError(
            f"split '{spec}' of data set '{dataset}' is not valid: it has {splits}; "
            f"slices look like 'train[:90%]' or 'train[45000:]'"
        ) from error
    if len(instructions) != 1:
        raise ValueError(f"split '{spec}' of data set '{dataset}' must name one split, not a sum")
    chosen = instructions[0]
    start = 0 if chosen.from_ is None else chosen.from_
    stop = lengths[chosen.splitname] if chosen.to is None else chosen.to
    if stop <= start:
        raise ValueError(f"split '{spec}' of data set '{dataset}' holds no image: it has {splits}")
    return chosen.splitname, slice(start, stop)
