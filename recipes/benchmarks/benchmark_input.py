r"""Compares the input pipelines with bare `tf.data` that does the same, on one core.

    python recipes/benchmarks/benchmark_input.py --workdir=runs/benchmark_input

The program makes JPEG photographs of 224x224 and 500x375 pixels from noise, stores them as a folder
of class folders and as TFRecords of TFDS, and reads batches of 224x224 images from both by
- the pipelines of `keras_dsnet.data`, whose batches are functions of a seed and the step;
- the pipelines of `reference/bare_input.py`, which draw from stateful generators.

The tasks are training with an inception crop and a flip, the same followed by colour jitter and
random erasing, by AutoAugment or by RandAugment with two operations, and evaluation. Both sides
alternate in one process that may use one core only. A turn counts the processor time of all threads
until the prefetched batches are replaced, so that other programs on the machine hardly matter. The
program prints images per second of processor time, and the ratio of the package to the reference,
and writes them as CSV, JSON and Markdown.

With --boxes it measures the pipelines of `keras_dsnet.detection` instead, on photographs of 300x300
pixels with one or two boxes in a folder in the form of PASCAL VOC: training with the augmentation
of SSD, and evaluation, against `reference/bare_boxes.py`.

With --measure_memory it measures instead by how much the peak of the resident memory of a new
process grows while the package makes batches, on Linux:

    python recipes/benchmarks/benchmark_input.py --workdir=runs/memory --measure_memory \
        --batch_size=512 --photographs=640
"""

import concurrent.futures
import functools
import multiprocessing
import os
import pathlib
import shlex
import statistics
import sys
import tempfile
import time

import numpy as np
from absl import flags
from keras_dsnet_recipes.benchmarks.timing import take_turns
from keras_dsnet_recipes.lib import checks
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.start import start

SIZES = {"224x224": (224, 224), "500x375": (375, 500)}  # names are width x height
TASKS = {
    "crop and flip": {},
    "jitter and erasing": {"color_jitter": 0.4, "random_erasing": 0.25},
    "AutoAugment": {"auto_augment": "imagenet"},
    "RandAugment": {"randaugment": 2},
    "evaluation": None,
}
BOX_TASKS = ("SSD", "evaluation")
BOX_SIZE = 300
STORES = ("folder", "tfrecords")
SIDES = ("package", "bare")
IMAGE_SIZE = 224
CLASSES = ("cat", "dog")
QUALITY = 90
# Threads that wait for work take less of a core than this.
IDLE_SHARE = 0.1
IDLE_SECONDS = 0.05

FLAGS = flags.FLAGS
shared.define_workdir("Folder that the figures are written into.")
shared.define_batch_size(64, "Images per batch.")
shared.define_rounds(7, "Number of rounds of the comparison.")
flags.DEFINE_integer("photographs", 128, "Number of photographs of each size.", lower_bound=4)
# The package makes two batches at a time, so a turn of one would count none or two.
flags.DEFINE_integer(
    "batches", 4, "Number of batches of a turn. Even, to measure speed.", lower_bound=2
)
flags.DEFINE_multi_enum(
    "size", list(SIZES), list(SIZES), "Width and height of the photographs. Can be repeated."
)
flags.DEFINE_multi_enum(
    "store", list(STORES), list(STORES), "Where the photographs are read from. Can be repeated."
)
flags.DEFINE_multi_enum("task", list(TASKS), list(TASKS), "Task to run. Can be repeated.")
flags.DEFINE_bool("boxes", False, "Measure images with boxes, of 300x300 pixels.")
flags.DEFINE_bool("measure_memory", False, "Measure the memory of the package, not the speed.")


def check_flags():
    """Raises an error if the folder cannot be written or a batch needs more images."""
    checks.check_workdir(FLAGS.workdir)
    most = FLAGS.photographs * 9 // 10
    if FLAGS.batch_size > most:
        raise ValueError(
            f"--batch_size must be at most {most}, nine tenths of "
            f"--photographs={FLAGS.photographs}. Received: --batch_size={FLAGS.batch_size}"
        )
    if FLAGS.boxes and FLAGS.measure_memory:
        raise ValueError("--boxes and --measure_memory exclude each other: give one of them")


def main(_):
    use_one_core()
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    rows = compare_boxes() if FLAGS.boxes else []
    for size in () if FLAGS.boxes else dict.fromkeys(FLAGS.size):
        with tempfile.TemporaryDirectory() as folder:
            photographs = Photographs(folder, SIZES[size], FLAGS.photographs)
            for store in dict.fromkeys(FLAGS.store):
                if FLAGS.measure_memory:
                    rows += memory_rows(size, store, photographs)
                else:
                    rows += compare(size, store, photographs, dict.fromkeys(FLAGS.task))
    from keras_dsnet.runs import write_table
    from keras_dsnet.utils.atomic_file import atomic_file

    workdir = pathlib.Path(FLAGS.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    print(write_table(rows, workdir, "memory" if FLAGS.measure_memory else "input"))
    if FLAGS.measure_memory:
        return
    with atomic_file(workdir / "table.md") as file:
        file.write(format_markdown(rows))


def use_one_core():
    """Lets this process run on one core only, which TensorFlow takes for the whole machine."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def compare_boxes():
    """Returns the rows of the table for photographs with boxes."""
    with tempfile.TemporaryDirectory() as folder:
        photographs = BoxPhotographs(pathlib.Path(folder), FLAGS.photographs)
        return compare(f"{BOX_SIZE}x{BOX_SIZE}", "folder", photographs, BOX_TASKS)


def compare(size, store, photographs, tasks):
    """Returns the rows of the table for photographs of one size in one store."""
    rows, plain = [], {}
    for task in tasks:
        runs = {
            "package": Reader(photographs.package_batches(store, task, FLAGS.batch_size)),
            "bare": Reader(photographs.bare_batches(store, task, FLAGS.batch_size)),
        }
        times = take_turns(runs, FLAGS.rounds, measure=functools.partial(measure, FLAGS.batches))
        rates = {side: [1e3 / ms for ms in times[side]] for side in SIDES}
        ratios = [own / bare for own, bare in zip(rates["package"], rates["bare"])]
        row = {"photographs": size, "store": store, "task": task}
        for side in SIDES:
            row[f"{side}_images_per_second"] = statistics.median(rates[side])
            row[f"{side}_most"] = max(rates[side])
        row["ratio"] = statistics.median(ratios)
        row["ratio_low"], row["ratio_high"] = min(ratios), max(ratios)
        plain = plain or row
        own = row["package_images_per_second"]
        row["of_first_task"] = own / plain["package_images_per_second"]
        rows.append(row)
        print(
            f"{size} {store}, {task}: {own:.0f} images/s, bare "
            f"{row['bare_images_per_second']:.0f}, ratio {row['ratio']:.2f} "
            f"({row['ratio_low']:.2f} to {row['ratio_high']:.2f}), "
            f"{row['of_first_task']:.2f} of {plain['task']}",
            flush=True,
        )
    return rows


def memory_rows(size, store, photographs):
    """Returns the peak memory of each pipeline of the package, each measured in a new process."""
    rows = []
    for task in dict.fromkeys(FLAGS.task):
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as process:
            arguments = photographs.folder, store, task, FLAGS.batch_size, FLAGS.batches
            grown = process.submit(grown_memory, *arguments).result()
        row = {"photographs": size, "store": store, "task": task, "batch_size": FLAGS.batch_size}
        rows.append({**row, "mebibytes": grown / 2**20})
        print(f"{size} {store}, {task}: {grown / 2**20:.0f} MiB", flush=True)
    return rows


def grown_memory(folder, store, task, batch_size, steps):
    """Returns the bytes by which the peak memory grows while the package makes batches."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    batches = package_batches(open_source(folder, store), task, batch_size)
    before = peak_memory()
    for _ in batches.take(steps):
        pass
    return peak_memory() - before


def peak_memory():
    """Returns the peak of the resident memory of this process in bytes."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    # Unlike `ru_maxrss`, it does not start with the peak of the parent process.
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def measure(steps, reader, count):
    """Returns the processor time of an image in milliseconds."""
    return reader.milliseconds(steps * count)


class Reader:
    """An endless stream of batches whose processor time can be measured."""

    def __init__(self, dataset):
        self._batches = iter(dataset)

    def milliseconds(self, count):
        """Returns the processor time of an image, the replacement of prefetched ones included."""
        start, images = time.process_time(), 0
        for _ in range(count):
            images += len(next(self._batches)[0])
        wait_until_idle()
        return 1e3 * (time.process_time() - start) / images


def wait_until_idle():
    """Returns when the threads of this process have had nothing to do for two short periods."""
    idle = 0
    while idle < 2:
        used = time.process_time()
        time.sleep(IDLE_SECONDS)
        idle = idle + 1 if time.process_time() - used < IDLE_SHARE * IDLE_SECONDS else 0


class Photographs:
    """JPEG images of one size, stored as a folder of class folders and as TFRecords.

    Args:
        folder: Path of an empty folder.
        shape: Tuple `(height, width)` in pixels.
        count: Int, number of images.
    """

    def __init__(self, folder, shape, count):
        import tensorflow as tf

        self.folder = folder = pathlib.Path(folder)
        generator = np.random.default_rng(0)
        encoded = [
            tf.io.encode_jpeg(make_photograph(generator, *shape), quality=QUALITY).numpy()
            for _ in range(count)
        ]
        for index, content in enumerate(encoded):
            path = folder / "photos" / CLASSES[index % len(CLASSES)] / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        store_records(encoded, folder / "tfds")
        self._count = count
        self.sources = {store: open_source(folder, store) for store in STORES}
        self._records = [str(path) for path in sorted((folder / "tfds").rglob("*.tfrecord*"))]

    def package_batches(self, store, task, batch_size):
        """Returns the batches of the package."""
        return package_batches(self.sources[store], task, batch_size)

    def bare_batches(self, store, task, batch_size):
        """Returns the batches of the reference."""
        from keras_dsnet_recipes.benchmarks.reference import bare_input as bare

        is_training = TASKS[task] is not None
        if store == "folder":
            source = self.sources[store]
            examples = bare.read_folder(source.paths, source.labels, is_training)
        else:
            examples = bare.read_records(self._records, self._count, is_training)
        if not is_training:
            return bare.evaluation_pipeline(examples, IMAGE_SIZE, batch_size, preprocess)
        augment = bare_augmentation(**TASKS[task])
        return bare.training_pipeline(examples, IMAGE_SIZE, batch_size, preprocess, augment)


class BoxPhotographs:
    """JPEG images with one or two boxes each, in a folder in the form of PASCAL VOC.

    Args:
        folder: Path of an empty folder.
        count: Int, number of images, of which a tenth is held out.
    """

    _XML = "<annotation><size><width>{0}</width><height>{0}</height></size>{1}</annotation>"
    _OBJECT = (
        "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
        "<ymax>{}</ymax></bndbox></object>"
    )

    def __init__(self, folder, count):
        import tensorflow as tf

        from keras_dsnet.detection import load_detection_source

        generator = np.random.default_rng(0)
        for name in ("JPEGImages", "Annotations"):
            (folder / name).mkdir()
        for index in range(count):
            pixels = make_photograph(generator, BOX_SIZE, BOX_SIZE)
            encoded = tf.io.encode_jpeg(pixels, quality=QUALITY).numpy()
            (folder / "JPEGImages" / f"{index}.jpg").write_bytes(encoded)
            objects = []
            for label in CLASSES[: 1 + index % 2]:
                begin = generator.integers(1, BOX_SIZE // 2, 2)
                end = begin + generator.integers(BOX_SIZE // 10, BOX_SIZE // 2, 2)
                objects.append(self._OBJECT.format(label, *begin, *end))
            text = self._XML.format(BOX_SIZE, "".join(objects))
            (folder / "Annotations" / f"{index}.xml").write_text(text)
        self._source = load_detection_source(folder)

    def package_batches(self, store, task, batch_size):
        """Returns the batches of the package; those of evaluation begin again after the last."""
        from keras_dsnet.detection import detection_evaluation_pipeline, detection_training_pipeline

        del store
        settings = {"image_size": BOX_SIZE, "batch_size": batch_size, "preprocess": preprocess}
        if task == "evaluation":
            return detection_evaluation_pipeline(self._source, **settings).repeat()
        return detection_training_pipeline(self._source, seed=0, **settings)

    def bare_batches(self, store, task, batch_size):
        """Returns the batches of the reference."""
        from keras_dsnet_recipes.benchmarks.reference import bare_boxes as bare

        del store
        arguments = self._source, BOX_SIZE, batch_size, preprocess
        if task == "evaluation":
            return bare.evaluation_pipeline(*arguments).repeat()
        return bare.training_pipeline(*arguments)


def open_source(folder, store):
    """Returns the source of the package that reads stored photographs."""
    from keras_dsnet.data import load_source

    if store == "folder":
        return load_source(str(folder / "photos"))
    return load_source("photos", str(folder / "tfds"))


def package_batches(source, task, batch_size):
    """Returns the batches of the package; those of evaluation begin again after the last."""
    from keras_dsnet.data import evaluation_pipeline, training_pipeline

    settings = {"image_size": IMAGE_SIZE, "batch_size": batch_size, "preprocess": preprocess}
    if TASKS[task] is None:
        return evaluation_pipeline(source, **settings).repeat()
    return training_pipeline(source, augmentation="imagenet", seed=0, **settings, **TASKS[task])


def bare_augmentation(color_jitter=0.0, random_erasing=0.0, auto_augment=None, randaugment=0):
    """Returns the reference of an augmentation of the package, or None."""
    from keras_dsnet_recipes.benchmarks.reference import bare_input as bare

    from keras_dsnet.data.auto_augment import AUTO_AUGMENT_POLICIES

    if color_jitter:
        return bare.jitter_and_erase(color_jitter, random_erasing)
    if auto_augment:
        lines = AUTO_AUGMENT_POLICIES[auto_augment].strip().splitlines()
        rows = [[operation.split() for operation in line.split(",")] for line in lines]
        return bare.auto_augment([[(n, float(p), float(k)) for n, p, k in row] for row in rows])
    return bare.rand_augment(randaugment, 0.5) if randaugment else None


def preprocess(images):
    """Scales images to the range from -1 to 1, as the networks take them."""
    return images / 127.5 - 1.0


def make_photograph(generator, height, width):
    """Returns uint8 noise whose spectrum falls as that of photographs does."""
    import tensorflow as tf

    image, strength, side = np.zeros((height, width, 3), np.float32), 70.0, 4
    while side <= max(height, width):
        noise = generator.normal(size=(side, side, 3)).astype(np.float32)
        image += strength * tf.image.resize(noise, (height, width), method="bicubic").numpy()
        strength, side = 0.65 * strength, 2 * side
    return np.clip(image + 115, 0, 255).astype(np.uint8)


def store_records(encoded, folder):
    """Stores encoded images as a data set of TFDS with the name `photos`."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    images = [tf.io.decode_jpeg(content).numpy() for content in encoded]
    labels = np.arange(len(images)) % len(CLASSES)
    dataset = tf.data.Dataset.from_tensor_slices({"image": np.stack(images), "label": labels})
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=list(CLASSES)),
        }
    )
    tfds.dataset_builders.store_as_tfds_dataset(
        name="photos",
        version="1.0.0",
        features=features,
        split_datasets={"train": dataset},
        data_dir=folder,
        disable_shuffling=True,
    )


def format_markdown(rows):
    """Returns the command and the table as Markdown for the documentation."""
    command = shlex.join(["python", "recipes/benchmarks/benchmark_input.py", *sys.argv[1:]])
    lines = [
        f"```\n{command}\n```\n",
        "| photographs | from | task | images/s | bare | ratio (lowest to highest) "
        f"| of {rows[0]['task']} |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            row["photographs"],
            row["store"],
            row["task"],
            f"{row['package_images_per_second']:.0f}",
            f"{row['bare_images_per_second']:.0f}",
            f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})",
            f"{row['of_first_task']:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    start(main, check_flags)
