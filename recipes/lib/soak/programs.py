"""The programs that a soak runs: small networks on small data."""

import json
import os
import pathlib
import select
import signal
import subprocess
import sys

RECIPES = pathlib.Path(__file__).resolve().parents[2]
SIZE = 32
_CLASSES = ("green", "red")
_SCENES = 40
_DIGITS = ("--dataset=digits", "--train_split=train[:256]", "--eval_split=test[:100]")
# Imports TensorFlow once, and forks a process for each program: a start then takes no seconds.
_SERVER = """
import json, os, runpy, sys
import keras, tensorflow

for line in sys.stdin:
    argv, out = json.loads(line)
    child = os.fork()
    if not child:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number in (1, 2):
            os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")
        sys.exit(0)
    print(child, flush=True)
    _, status, used = os.wait4(child, 0)
    print(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, flush=True)
"""


class Programs:
    """Runs programs one after the other, each in a new process. A context manager."""

    def __enter__(self):
        environment = {
            "TF_CPP_MIN_LOG_LEVEL": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "TF_NUM_INTRAOP_THREADS": "1",
            "TF_NUM_INTEROP_THREADS": "1",
            **os.environ,
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-c", _SERVER]
        self._server = subprocess.Popen(command, env=environment, bufsize=1, **pipes)
        return self

    def __exit__(self, *_):
        self._server.kill()
        self._server.wait()

    def start(self, command, output):
        """Starts a program.

        Args:
            command: List of its file and its arguments.
            output: Path of the file that its lines are appended to.

        Returns:
            `Running`.
        """
        self._server.stdin.write(json.dumps([list(map(str, command)), str(output)]) + "\n")
        return Running(self._server.stdout)

    def run(self, command, output):
        """Runs a program to its end, and returns its exit code and its processor time."""
        running = self.start(command, output)
        return running.wait(), running.processor_seconds()


class Running:
    """A program that runs. `pid` is its process id."""

    def __init__(self, answers):
        self._answers = answers
        line = answers.readline()
        if not line:
            raise OSError("The process that starts the programs has ended")
        self.pid = int(line)
        self._code = self._seconds = None

    def processor_seconds(self):
        """Returns the processor time that the program has taken."""
        return processor_seconds(self.pid) if self._seconds is None else self._seconds

    def poll(self, seconds=0.0):
        """Returns the exit code, negative for a signal, or None if the program still runs."""
        if self._code is None and select.select([self._answers], [], [], seconds)[0]:
            code, seconds = self._answers.readline().split()
            self._code, self._seconds = int(code), float(seconds)
        return self._code

    def wait(self):
        """Waits for the end, and returns the exit code."""
        while self.poll(60) is None:
            pass
        return self._code

    def kill(self):
        """Kills the program as `kill -9` does, unless it has ended, and returns its exit code."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        return self.wait()


def processor_seconds(pid):
    """Returns the processor time of a process that runs, or 0.0."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def make_inputs(folder):
    """Writes the networks and photographs that the programs need.

    Args:
        folder: Path. A folder that is complete is left alone.
    """
    folder = pathlib.Path(folder)
    done = folder / "done.txt"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    small_network(10).save(folder / "supernet.keras")
    network = small_network(10)
    network.gates_trained = True
    network.save(folder / "model.keras")
    _write_scenes(folder / "scenes")
    done.write_text("complete\n")


def small_network(classes):
    """Returns a small network of one gate, with variables that are a function of a seed."""
    import keras

    from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage

    keras.utils.set_random_seed(0)
    stages = (
        MobileNetStage(1, 2, (12, 16)),
        MobileNetStage(1, 2, (12, 16, 24), gated=True),
        MobileNetStage(1, 1, (16, 24, 32)),
    )
    spec = MobileNetSpec(stem=(8, 12), stages=stages)
    shape = (SIZE, SIZE, 3)
    return DynamicSlimmableNetwork(spec, shape, classes=classes, name="small")


def _write_scenes(folder):
    """Writes squares in two colours in the form of PASCAL VOC."""
    import keras
    import numpy as np

    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    names = [f"{index:02}" for index in range(_SCENES)]
    for name in names:
        pixels = generator.integers(100, 150, (SIZE, SIZE, 3)).astype("uint8")
        side, label = int(generator.integers(8, 14)), int(generator.integers(0, 2))
        top, left = generator.integers(0, SIZE - side, 2)
        pixels[top : top + side, left : left + side] = 0
        pixels[top : top + side, left : left + side, 1 - label] = 255
        keras.utils.save_img(folder / "JPEGImages" / f"{name}.jpg", pixels, scale=False)
        box = (left + 1, top + 1, left + side, top + side)
        sides = "".join(
            f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box)
        )
        (folder / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><size><width>{SIZE}</width><height>{SIZE}</height><depth>3</depth></size>"
            f"<object><name>{_CLASSES[label]}</name><difficult>0</difficult>"
            f"<bndbox>{sides}</bndbox></object></annotation>"
        )
    lists = {"train": names[: _SCENES - 8], "val": names[_SCENES - 8 :]}
    for name, part in lists.items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(part) + "\n")


def command_of(subject, inputs, workdir):
    """Returns the command line of a program, its file first.

    Args:
        subject: Str, a key of `SUBJECTS`.
        inputs: Path of the folder of `make_inputs`.
        workdir: Path of the folder that the program writes into.
    """
    name, arguments = SUBJECTS[subject]
    names = {"inputs": inputs, "workdir": workdir}
    return [RECIPES / name, *(argument.format(**names) for argument in arguments)]


_TRAINING = ("--num_random=1", "--deterministic", "--checkpoint_steps=2", "--workdir={workdir}")
SUBJECTS = {
    "stage I": (
        "imagenet_stage1.py",
        (
            *_DIGITS,
            "--alpha=0.25",
            "--batch_size=64",
            "--epochs=2",
            "--evaluate_epochs=2",
            "--learning_rate=0.4",
            "--recalibration_steps=2",
            *_TRAINING,
        ),
    ),
    "stage II": (
        "imagenet_stage2.py",
        (
            *_DIGITS,
            "--supernet={inputs}/supernet.keras",
            "--batch_size=64",
            "--epochs=2",
            "--deterministic",
            "--checkpoint_steps=2",
            "--workdir={workdir}",
        ),
    ),
    "detection": (
        "voc_fssd.py",
        (
            "--dataset={inputs}/scenes",
            "--backbone={inputs}/supernet.keras",
            f"--image_size={SIZE}",
            "--head_channels=8",
            "--pyramid=16",
            "--batch_size=8",
            "--eval_batch_size=8",
            "--epochs=2",
            "--learning_rate=0.4",
            "--recalibration_steps=2",
            *_TRAINING,
        ),
    ),
    "export": (
        "export_mobile.py",
        ("--model={inputs}/model.keras", "--output={workdir}/m.tflite"),
    ),
    "save": ("lib/soak/save.py", ("{workdir}",)),
}
