r"""Stage I in JAX: trains a run of imagenet_stage1.py on a GPU, without TensorFlow.

TensorFlow runs only with the versions of CUDA that it supports; JAX supports newer ones. The
machine with the GPU needs JAX, absl-py, this package (`pip install --no-deps .`) and no data set. A
run is written as a task, trained, and taken over by the command that wrote it:

    python recipes/imagenet_stage1.py --flagfile=recipes/configs/cifar10_table5.cfg \
        --data_dir=/data/tfds --workdir=runs/table5 --target=ema --jax_task=tasks/table5
    python recipes/jax_stage1.py --tasks=tasks/table5
    python recipes/imagenet_stage1.py --flagfile=recipes/configs/cifar10_table5.cfg \
        --data_dir=/data/tfds --workdir=runs/table5 --target=ema --jax_task=tasks/table5

The folder of a task holds task.npz, the network and its settings. The training images are beside
it, in a file that tasks of the same images share. Both are copied to the machine with the GPU, and
trained.npz is copied back. The state after each epoch is in progress.npz, from which the same
command continues a task that was stopped.

--tasks also takes several folders, or a folder of them. Tasks of one kind, which differ only in
seed, temperature or the width that is trained alone, are trained side by side, as one batch of
networks. `python recipes/reproduce.py --jax_tasks=tasks` writes all tasks of a table.

Losses, gradients, optimizer, schedule and teacher are those of imagenet_stage1.py. The order of the
images, their crops and the random widths come from JAX's generator, so that two runs of the same
seed are two runs of the same kind and not the same run. Matrix products have the precision that JAX
chooses by default, which is TF32 on a GPU.
"""

import sys

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_list("tasks", None, "Folders of tasks, or folders of such folders.")
flags.DEFINE_integer(
    "side_by_side", 6, "Largest number of tasks that are trained side by side.", lower_bound=1
)


def main(_):
    if not FLAGS.tasks:
        print("error: --tasks must be given", file=sys.stderr)
        sys.exit(1)
    # Where JAX is missing, --help still works.
    from keras_dsnet_recipes.lib.jax_training import side_by_side

    try:
        folders = side_by_side.find_tasks(FLAGS.tasks)
        print(f"{side_by_side.describe_machine()}: {len(folders)} tasks to train", flush=True)
        for group in side_by_side.grouped(folders, FLAGS.side_by_side):
            side_by_side.train(group)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)
