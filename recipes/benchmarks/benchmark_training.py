r"""Times a stage-I step against the same mathematics in bare TensorFlow.

    python recipes/benchmarks/benchmark_training.py --workdir=runs/benchmark_training
    python recipes/benchmarks/benchmark_training.py --workdir=runs/benchmark_training \
        --model=ds_resnet50

The benchmark uses images of 32x32 pixels (10 classes) and of 224x224 pixels (1000 classes). It
alternates three steps in one process:
- a step of `SupernetTrainer`, as `fit` calls it;
- a step of the reference in `reference/bare_stage1.py`, which imports nothing of this package;
- one `train_on_batch` of the nearest network of `keras.applications` with `keras.optimizers.SGD`.
  It gives the scale: a stage-I step trains four sub-networks and runs three of the teacher.

Every round runs each step for about a second. The resident memory is the peak of a separate process
that only trains the supernet of the package. The program prints minimum and median and writes JSON.
docs/results/training.md has the measured times: a step of DS-MobileNet takes 0.95 of the reference
at 32x32 and 0.90 at 224x224, by the medians.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys

from absl import flags
from keras_dsnet_recipes.benchmarks.timing import low_and_middle, ratios, take_turns
from keras_dsnet_recipes.lib import checks
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.model_settings import MODELS
from keras_dsnet_recipes.lib.start import start


@dataclasses.dataclass(frozen=True)
class Subject:
    """The settings of the measurement of one network.

    Args:
        nearest: Str, name of the nearest network in `keras.applications`.
        batches: Dict of the images per step of each setting.
        small: Dict of options of the network at 32x32.
    """

    nearest: str
    batches: dict
    small: dict


SUBJECTS = {
    "ds_mobilenet": Subject("MobileNet", {"32x32": 64, "224x224": 32}, {}),
    "ds_resnet50": Subject(
        "ResNet50",
        {"32x32": 64, "224x224": 8},
        {"alpha": 0.25, "output_stride": 8},
    ),
    "ds_efficientnet_b0": Subject(
        "EfficientNetB0",
        {"32x32": 64, "224x224": 16},
        {"alpha": 0.5, "output_stride": 8},
    ),
}
# Side of the images in pixels, and number of classes.
SETTINGS = {"32x32": (32, 10), "224x224": (224, 1000)}
GIB = 2.0**30

FLAGS = flags.FLAGS
shared.define_workdir("Folder that the figures are written into.")
shared.define_network(SUBJECTS)
shared.define_rounds(9, "Number of rounds of each comparison.")
flags.DEFINE_bool("memory", True, "Also measure the resident memory, in separate processes.")
flags.DEFINE_multi_enum(
    "setting", list(SETTINGS), list(SETTINGS), "Setting to run. Can be repeated."
)
shared.define_batch_size(
    None, "Images per step. Defaults to a size that depends on the network and the setting."
)
flags.DEFINE_enum(
    "only_train",
    None,
    list(SETTINGS),
    "For internal use: train at this setting and print the peak memory.",
)


def check_flags():
    """Raises an error if the work directory cannot be written."""
    checks.check_workdir(FLAGS.workdir)


def make_batch(name):
    """Returns random images and labels of a setting."""
    import numpy as np
    import tensorflow as tf

    size, classes = SETTINGS[name]
    batch = FLAGS.batch_size or SUBJECTS[FLAGS.model].batches[name]
    generator = np.random.default_rng(0)
    images = generator.normal(size=(batch, size, size, 3)).astype("float32")
    return tf.constant(images), tf.constant(generator.integers(0, classes, batch), tf.int32)


def make_model(name):
    """Returns the supernet of a setting."""
    from keras_dsnet import applications

    size, classes = SETTINGS[name]
    options = SUBJECTS[FLAGS.model].small if name == "32x32" else {}
    return getattr(applications, MODELS[FLAGS.model].application)(
        input_shape=(size, size, 3), classes=classes, classifier_activation=None, **options
    )


def package_step(name, images, labels):
    """Returns a function that runs one step as `fit` does."""
    import tensorflow as tf

    from keras_dsnet.training import L2SGD, SupernetTrainer

    trainer = SupernetTrainer(make_model(name))
    trainer.compile(L2SGD(0.05))
    batches = iter(tf.data.Dataset.from_tensors((images, labels)).repeat())
    trainer.make_train_function()
    return lambda: float(trainer.train_function(batches)["loss"])


def reference_step(name, images, labels):
    """Returns a function that runs one step of the reference."""
    from keras_dsnet_recipes.benchmarks.reference.bare_efficientnet import BareEfficientNet
    from keras_dsnet_recipes.benchmarks.reference.bare_mobilenet import BareMobileNet
    from keras_dsnet_recipes.benchmarks.reference.bare_resnet import BareResNet
    from keras_dsnet_recipes.benchmarks.reference.bare_stage1 import BareStageOne

    networks = dict(zip(SUBJECTS, (BareMobileNet, BareResNet, BareEfficientNet)))
    size, classes = SETTINGS[name]
    # The reference takes only the spec of the network from the package.
    network = networks[FLAGS.model](make_model(name).spec, classes)
    stage_one = BareStageOne(network, len(images), size)
    return lambda: stage_one.train_step(images, labels).numpy()


def nearest_step(name, images, labels):
    """Returns a function that runs one `train_on_batch` of the nearest Keras network."""
    import keras

    size, classes = SETTINGS[name]
    network = getattr(keras.applications, SUBJECTS[FLAGS.model].nearest)
    model = network(input_shape=(size, size, 3), weights=None, classes=classes)
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True)
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    return lambda: model.train_on_batch(images, labels)


STEPS = {"package": package_step, "reference": reference_step, "nearest": nearest_step}


def compare(name):
    """Runs the alternating rounds of a setting; prints and returns their figures."""
    images, labels = make_batch(name)
    steps = {key: make(name, images, labels) for key, make in STEPS.items()}
    times = take_turns(steps, FLAGS.rounds, seconds_per_turn=1.0)
    nearest = SUBJECTS[FLAGS.model].nearest
    row = {"model": FLAGS.model, "setting": name, "batch": len(images), "nearest": nearest}
    print(f"{FLAGS.model}, {name}, batch {len(images)} (min / median)")
    for key, values in times.items():
        low, middle = row[f"{key}_ms"] = low_and_middle(values)
        title = nearest if key == "nearest" else key
        line = f"  {title:14} {low:.1f} / {middle:.1f} ms"
        if key != "package":
            pair = row[f"ratio_to_{key}"] = ratios(times["package"], values)
            line += f", package / {title} = {pair[0]:.3f} / {pair[1]:.3f}"
        print(line, flush=True)
    return row


def peak_memory(name):
    """Returns the peak resident memory in GiB of a process that trains at this setting."""
    command = [sys.executable, __file__, f"--workdir={FLAGS.workdir}", f"--model={FLAGS.model}"]
    command.append(f"--only_train={name}")
    if FLAGS.batch_size:
        command.append(f"--batch_size={FLAGS.batch_size}")
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.split()[-1])


def train_and_print_memory(name):
    """Runs ten steps and prints the peak of this process's resident memory in GiB."""
    import resource

    step = package_step(name, *make_batch(name))
    for _ in range(10):
        step()
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
    # Memory is measured before this process grows, because a child starts with its parent's peak.
    for name in FLAGS.setting if FLAGS.memory else []:
        memory[name] = peak_memory(name)
        print(f"{name}: peak resident memory {memory[name]:.2f} GiB", flush=True)
    rows = [{**compare(name), "peak_gib": memory.get(name)} for name in FLAGS.setting]
    (workdir / f"{FLAGS.model}.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    start(main, check_flags)
