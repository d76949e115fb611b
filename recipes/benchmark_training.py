r"""Times a stage-I step against the same mathematics in bare TensorFlow.

    python recipes/benchmark_training.py --workdir=runs/benchmark_training

At batch 64 of 32x32 images (10 classes) and at batch 32 of 224x224 (1000 classes), rounds that
alternate in one process run
- `SupernetTrainer`: the step that `fit` calls,
- the reference of `bare_stage1.py`, which imports nothing of this package,
- one `train_on_batch` of `keras.applications.MobileNet` with `keras.optimizers.SGD`, for scale: a
  stage-I step trains four sub-networks and asks three of a teacher.

Every round runs each of them for about a second. The resident memory is the peak of a process that
does nothing but train the package's supernet. Prints minimum and median, writes JSON.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import time

from absl import flags
from start import start

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Folder for the figures.", required=True)
flags.DEFINE_integer("rounds", 9, "Rounds of each comparison.", lower_bound=1)
flags.DEFINE_bool("memory", True, "Measure the resident memory too, in processes of their own.")
SETTINGS = {"32x32": (32, 64, 10), "224x224": (224, 32, 1000)}
flags.DEFINE_multi_enum("setting", list(SETTINGS), list(SETTINGS), "Which to run; repeatable.")
GIB = 2.0**30
flags.DEFINE_enum("only_train", None, list(SETTINGS), "Used inside: train and print the memory.")


def make_batch(size, batch, classes):
    """Returns random images and labels."""
    import numpy as np
    import tensorflow as tf

    generator = np.random.default_rng(0)
    images = generator.normal(size=(batch, size, size, 3)).astype("float32")
    return tf.constant(images), tf.constant(generator.integers(0, classes, batch), tf.int32)


def package_step(size, classes, images, labels):
    """Returns a function that runs one step as `fit` does."""
    import tensorflow as tf
    from keras_dsnet.applications import DSMobileNet

    from keras_dsnet.training import L2SGD, SupernetTrainer

    model = DSMobileNet(input_shape=(size, size, 3), classes=classes, classifier_activation=None)
    trainer = SupernetTrainer(model)
    trainer.compile(L2SGD(0.05))
    batches = iter(tf.data.Dataset.from_tensors((images, labels)).repeat())
    trainer.make_train_function()
    return lambda: float(trainer.train_function(batches)["loss"])


def reference_step(size, classes, images, labels):
    """Returns a function that runs one step of the reference."""
    from bare_mobilenet import BareMobileNet
    from bare_stage1 import BareStageOne

    stage_one = BareStageOne(BareMobileNet(classes), len(images), size)
    return lambda: stage_one.train_step(images, labels).numpy()


def mobilenet_step(size, classes, images, labels):
    """Returns a function that runs one `train_on_batch` of Keras's MobileNet."""
    import keras

    model = keras.applications.MobileNet(input_shape=(size, size, 3), weights=None, classes=classes)
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True)
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    return lambda: model.train_on_batch(images, labels)


STEPS = {"package": package_step, "reference": reference_step, "mobilenet": mobilenet_step}


def seconds_per_step(step, count):
    """Returns the mean time of `count` steps."""
    start = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) / count


def compare(name):
    """Runs the alternating rounds of a setting, prints and returns their figures."""
    size, batch, classes = SETTINGS[name]
    images, labels = make_batch(size, batch, classes)
    steps = {key: make(size, classes, images, labels) for key, make in STEPS.items()}
    counts = {}
    for key, step in steps.items():
        # The first step traces; the next ones warm the allocator.
        seconds_per_step(step, 3)
        counts[key] = max(1, round(1.0 / seconds_per_step(step, 1)))
    times = {key: [] for key in steps}
    order = list(steps)
    for _ in range(FLAGS.rounds):
        for key in order:
            times[key].append(seconds_per_step(steps[key], counts[key]))
        # None is always the one that follows the largest.
        order.append(order.pop(0))
    row = {"setting": name, "batch": batch, "steps_per_round": counts}
    for key, values in times.items():
        row[f"{key}_seconds"] = [min(values), statistics.median(values)]
        ratios = [a / b for a, b in zip(times["package"], values)]
        row[f"ratio_to_{key}"] = [min(times["package"]) / min(values), statistics.median(ratios)]
    print(f"{name}, batch {batch} (min / median)")
    for key in steps:
        low, middle = row[f"{key}_seconds"]
        ratios = " / ".join(f"{ratio:.3f}" for ratio in row[f"ratio_to_{key}"])
        print(f"  {key:10} {low:.3f} / {middle:.3f} s, package / {key} = {ratios}", flush=True)
    return row


def peak_memory(name):
    """Returns the peak resident memory in GiB of a process that trains at this setting."""
    command = [sys.executable, __file__, f"--workdir={FLAGS.workdir}", f"--only_train={name}"]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.split()[-1])


def train_and_print_memory(name):
    """Runs ten steps and prints the peak of this process's resident memory in GiB."""
    import resource

    size, batch, classes = SETTINGS[name]
    seconds_per_step(package_step(size, classes, *make_batch(size, batch, classes)), 10)
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB)


def main(_):
    if FLAGS.only_train:
        train_and_print_memory(FLAGS.only_train)
        return
    workdir = pathlib.Path(FLAGS.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    memory = {}
    # Before this process grows: a child starts with its parent's peak.
    for name in FLAGS.setting if FLAGS.memory else []:
        memory[name] = peak_memory(name)
        print(f"{name}: peak resident memory {memory[name]:.2f} GiB", flush=True)
    rows = [{**compare(name), "peak_gib": memory.get(name)} for name in FLAGS.setting]
    (workdir / "training.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    start(main)
