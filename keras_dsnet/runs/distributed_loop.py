"""The training loop of several machines, in place of Keras's `fit`."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf


def is_multi_worker(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether a strategy trains on several machines."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


class RunStoppedError(Exception):
    """A run on several machines has ended early, because a worker asked for it."""


class DistributedLoop:
    """Trains under `tf.distribute.MultiWorkerMirroredStrategy`, where Keras's `fit` fails.

    Every worker runs the same loop. Its steps are those of the trainer, and its callbacks those of
    Keras. Worker 0 is the chief, which reads and writes the files of the run.

    Args:
        trainer: Compiled trainer that was created in the scope of the strategy.

    Attributes:
        index: Int, the number of this worker. The chief is worker 0.
        num_workers: Int.
    """

    def __init__(self, trainer: keras.Model):
        self.trainer = trainer
        self.strategy = trainer.distribute_strategy
        context = self._input_context()
        self.index = context.input_pipeline_id
        self.num_workers = context.num_input_pipelines
        self._step: Callable | None = None
        self._is_asked_to_stop = False

    def _input_context(self):
        contexts = []

        def keep(context):
            contexts.append(context)
            return tf.data.Dataset.from_tensors(0)

        self.strategy.distribute_datasets_from_function(keep)
        return contexts[0]

    def check_batch_size(self, batch_size: int) -> int:
        """Checks that a batch divides among the replicas.

        Args:
            batch_size: Int, images per step, over all replicas.

        Raises:
            ValueError: If it does not.
        """
        replicas = self.strategy.num_replicas_in_sync
        if batch_size % replicas:
            raise ValueError(
                f"`batch_size` must be a multiple of the {replicas} replicas of "
                f"{self.num_workers} workers. Received: batch_size={batch_size}"
            )
        return batch_size

    def agree(self, values: Mapping[str, Any]) -> None:
        """Checks that every worker has the same values. All workers call it together.

        Args:
            values: Dict that JSON can hold.

        Raises:
            ValueError: On every worker, if two of them differ. It names the first difference.
        """
        texts = self._gathered(json.dumps(values, sort_keys=True))
        first, *others = (json.loads(text) for text in texts)
        for index, other in enumerate(others, start=1):
            for name in sorted({*first, *other}):
                pair = other.get(name), first.get(name)
                if pair[0] != pair[1]:
                    raise ValueError(
                        "All workers must train on the same data. "
                        f"Received: {name}={pair[1]!r} on worker 0, {name}={pair[0]!r} on worker "
                        f"{index}"
                    )

    def _gathered(self, text):
        """Returns the texts of all workers, in their order."""
        content = tf.constant(list(text.encode()), tf.int32)
        replicas = self.strategy.num_replicas_in_sync // self.num_workers

        @tf.function(autograph=False)
        def gather():
            return self.strategy.run(
                lambda: (
                    tf.distribute.get_replica_context().all_gather(tf.shape(content), axis=0),
                    tf.distribute.get_replica_context().all_gather(content, axis=0),
                )
            )

        sizes, joined = (
            self.strategy.experimental_local_results(part)[0].numpy() for part in gather()
        )
        texts, start = [], 0
        for size in sizes:
            texts.append(bytes(joined[start : start + size].tolist()).decode())
            start += size
        return texts[::replicas]

    def broadcast(self, variables: Mapping[str, Sequence[keras.Variable]], step: int) -> int:
        """Gives every worker the state of the chief. All workers call it together.

        Args:
            variables: Dict from group names to lists of `keras.Variable`.
            step: Int, the step of the state. Only the chief's counts.

        Returns:
            Int, the step of the chief.
        """
        every = [variable for group in variables.values() for variable in group]
        groups: dict[tf.DType, list[keras.Variable]] = {}
        for variable in every:
            groups.setdefault(_sent_as(variable), []).append(variable)
        sent = [tf.constant(step, tf.int64)]
        for dtype, group in groups.items():
            flat = [tf.reshape(tf.cast(variable.numpy(), dtype), [-1]) for variable in group]
            sent.append(tf.concat(flat, 0))
        # One collective for each type, since there are hundreds of variables.
        step, *received = self._of_chief(sent)
        for values, group in zip(received, groups.values(), strict=True):
            sizes = [math.prod(variable.shape) for variable in group]
            for variable, value in zip(group, tf.split(values, sizes), strict=True):
                variable.assign(tf.cast(tf.reshape(value, variable.shape), variable.dtype))
        return int(step)

    def _of_chief(self, tensors):
        """Returns the tensors of the chief, whose forms all workers have."""
        strategy = self.strategy

        @tf.function(autograph=False)
        def sums():
            def of_replica():
                context = tf.distribute.get_replica_context()
                is_chief = tf.equal(context.replica_id_in_sync_group, 0)
                own = [tf.where(is_chief, tensor, tf.zeros_like(tensor)) for tensor in tensors]
                return [context.all_reduce("SUM", tensor) for tensor in own]

            return strategy.run(of_replica)

        return [strategy.experimental_local_results(value)[0] for value in sums()]

    def stop(self) -> None:
        """Asks all workers to end after the step at hand. Can be called by a signal handler."""
        self._is_asked_to_stop = True

    def fit(
        self,
        make_dataset: Callable[..., tf.data.Dataset],
        step: int,
        *,
        first_epoch: int,
        last_epoch: int,
        steps: int,
        callbacks: Sequence[keras.callbacks.Callback],
    ) -> None:
        """Trains as `keras.Model.fit` does.

        Args:
            make_dataset: Function of a start step, and of `shard_index` and `num_shards`, that
                returns an endless data set of this worker's rows of the batches.
            step: Int, the first step.
            first_epoch: Int.
            last_epoch: Int, the epoch to stop before.
            steps: Int, steps per epoch.
            callbacks: List of Keras callbacks.

        Raises:
            RunStoppedError: If a worker asked to stop, after the callbacks' `on_train_end`.
        """
        trainer = self.trainer
        trainer.stop_training = False
        batches = iter(self._batches(make_dataset, step))
        run_step = self._step = self._step or trainer.replicated_step()
        listed = keras.callbacks.CallbackList(callbacks, model=trainer, epochs=last_epoch)
        listed.set_params({"epochs": last_epoch, "steps": steps, "verbose": 0})
        listed.on_train_begin()
        logs, stopped = {}, False
        for epoch in range(first_epoch, last_epoch):
            for metric in trainer.metrics:
                metric.reset_state()
            listed.on_epoch_begin(epoch)
            for index in range(steps):
                listed.on_train_batch_begin(index)
                logs, stopped = run_step(batches, self._is_asked_to_stop)
                listed.on_train_batch_end(index, logs)
                if stopped:
                    break
            # An epoch that is complete has its evaluation, which a resumed run would leave out.
            if index + 1 == steps:
                listed.on_epoch_end(epoch, dict(logs))
            if stopped:
                break
        listed.on_train_end(logs)
        if stopped:
            raise RunStoppedError("A worker asked the run to stop")

    def _batches(self, make_dataset, step):
        def rows(context):
            dataset = make_dataset(
                step, shard_index=context.input_pipeline_id, num_shards=context.num_input_pipelines
            )
            replicas = context.num_replicas_in_sync // context.num_input_pipelines
            if replicas > 1:
                dataset = dataset.map(lambda *batch: _divided(batch, replicas)).unbatch()
            # Without it, TensorFlow asks all workers before each step whether the data have ended.
            endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
            return dataset.apply(endless)

        return self.strategy.distribute_datasets_from_function(rows)


def _divided(batch, replicas):
    def divide(rows):
        return tf.reshape(rows, tf.concat([[replicas, -1], tf.shape(rows)[1:]], 0))

    return tf.nest.map_structure(divide, batch)


def _sent_as(variable):
    """Returns the type in which a variable's values are sent exactly."""
    dtype = tf.as_dtype(variable.dtype)
    if not dtype.is_floating:
        return tf.int64
    return dtype if dtype.size >= 4 else tf.float32
