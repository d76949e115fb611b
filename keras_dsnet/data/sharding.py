"""The share of a worker in the batches of several machines."""

import tensorflow as tf


class Shard:
    """The rows of every batch that one worker reads.

    The rows of all workers together are the batch that one worker would read, in order.

    Args:
        batch_size: Int, images of the whole batch.
        index: Int, the number of the worker, from 0.
        count: Int, the number of workers.

    Raises:
        ValueError: If the batch does not divide among the workers, or there is no such worker.
    """

    def __init__(self, batch_size: int, index: int = 0, count: int = 1):
        if not 0 <= index < count:
            raise ValueError(
                "`shard_index` must be from 0 to less than `num_shards`. "
                f"Received: shard_index={index}, num_shards={count}"
            )
        if batch_size % count:
            raise ValueError(
                "`batch_size` must be a multiple of `num_shards`. "
                f"Received: batch_size={batch_size}, num_shards={count}"
            )
        self.batch_size = batch_size
        self.rows = batch_size // count
        self.first = index * self.rows

    def of_batches(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """Returns the worker's rows of a data set of whole batches."""
        if self.rows == self.batch_size:
            return batches
        rows = slice(self.first, self.first + self.rows)
        return batches.map(lambda *batch: tf.nest.map_structure(lambda part: part[rows], batch))

    def of_examples(self, examples: tf.data.Dataset) -> tf.data.Dataset:
        """Returns the worker's examples.

        Args:
            examples: `tf.data.Dataset` of tuples, whose first item is the position of the example
                in the stream of all batches.
        """
        if self.rows == self.batch_size:
            return examples

        def is_own(position, *_):
            return position % self.batch_size // self.rows == self.first // self.rows

        return examples.filter(is_own)

    def positions(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the positions of the worker's examples of a batch, int64 `[rows]`."""
        return step * self.batch_size + self.first + tf.range(self.rows, dtype=tf.int64)
