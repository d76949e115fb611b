r"""Measures the bytes that two workers exchange in a stage-I step, against the predicted ones.

    sudo python recipes/benchmarks/measure_all_reduce.py --workdir=runs/all_reduce --rate=1gbit

Two processes train under `tf.distribute.MultiWorkerMirroredStrategy` in a network namespace of
their own, whose only interface has a limited rate. A bare loop calls the step of `SupernetTrainer`.
The program counts the bytes that the interface sends during the steps, and compares them with
`step_costs.py`, which counts the variables of the network. Each of two workers sends every reduced
byte once. Needs Linux, root, `unshare`, `ip` and `tc`. The result is in docs/scaling.md.
"""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

from absl import flags
from keras_dsnet_recipes.lib import checks
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.model_settings import MODELS
from keras_dsnet_recipes.lib.start import start

FLAGS = flags.FLAGS
WORKERS = 2
WARM_UP = 2
TOOLS = ("unshare", "ip", "tc")
# A burst must hold the largest packet of the loopback interface, 64 KiB.
SET_UP = (
    "ip link set lo up && "
    'tc qdisc add dev lo root tbf rate "$1" burst 256kb latency 1s && shift && exec "$@"'
)
LIMIT_SECONDS = 1200

shared.define_workdir("Folder that the figures are written into.")
shared.define_network(MODELS)
shared.define_image_size("Side of the images in pixels.", 32, lower_bound=32)
shared.define_batch_size(2, "Images per step on each worker.")
flags.DEFINE_bool("synchronized", True, "Whether batch norm is synchronized.")
flags.DEFINE_integer("reduced_steps", 6, "Number of steps that are measured.", lower_bound=1)
flags.DEFINE_string("rate", "1gbit", "Rate of the interface, in the words of `tc`.")
flags.DEFINE_enum("part", None, ["namespace", "worker"], "For internal use.")


def check_flags():
    """Raises an error if the folder cannot be written or a tool is missing."""
    checks.check_workdir(FLAGS.workdir)
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or os.geteuid():
        raise ValueError(
            "a network namespace needs root and the tools unshare, ip and tc. Received: "
            + (f"no {missing[0]}" if missing else "a user without root's rights")
        )


def main(_):
    if FLAGS.part == "worker":
        train()
    elif FLAGS.part == "namespace":
        run_workers()
    else:
        return enter_namespace()
    return 0


def enter_namespace():
    """Runs this program again in a network namespace, and reports what it measured."""
    workdir = pathlib.Path(FLAGS.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "all_reduce.json").unlink(missing_ok=True)
    program = [sys.executable, __file__, *sys.argv[1:], "--part=namespace"]
    shell = ["unshare", "--net", "sh", "-c", SET_UP, "sh", FLAGS.rate, *program]
    done = subprocess.run(shell, check=False, timeout=LIMIT_SECONDS)
    if done.returncode:
        # The program in the namespace has written its error.
        return done.returncode
    row = json.loads((workdir / "all_reduce.json").read_text())
    print(
        f"{FLAGS.model}: predicted {row['predicted_bytes'] / 1e6:.3f} MB, measured "
        f"{row['measured_bytes'] / 1e6:.3f} MB, ratio "
        f"{row['measured_bytes'] / row['predicted_bytes']:.4f}; a step at {FLAGS.rate} takes "
        f"{row['step_seconds']:.2f} s, of which the bytes alone need {row['wire_seconds']:.2f} s"
    )
    return 0


def run_workers():
    """Starts the workers, and ends all of them if one fails."""
    ports = free_ports(WORKERS)
    addresses = [f"127.0.0.1:{port}" for port in ports]
    processes = []
    for index in range(WORKERS):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(task), "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, __file__, *sys.argv[1:], "--part=worker"]
        processes.append(subprocess.Popen(command, env=environment))
    try:
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes):
                raise ValueError("a worker failed; its message stands above")
            time.sleep(0.2)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(process.returncode for process in processes):
        raise ValueError("a worker failed; its message stands above")


def free_ports(count):
    """Returns ports that no process listens at."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def train():
    """Runs the steps of a worker. The first worker writes what both of them sent."""
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    from keras_dsnet_recipes.benchmarks.step_costs import stage_one_costs

    from keras_dsnet import applications
    from keras_dsnet.training import L2SGD, SupernetTrainer

    shape = (FLAGS.image_size, FLAGS.image_size, 3)
    with strategy.scope():
        network = getattr(applications, MODELS[FLAGS.model].application)(
            input_shape=shape, classifier_activation=None, synchronized=FLAGS.synchronized
        )
        trainer = SupernetTrainer(network)
        trainer.compile(L2SGD(0.01))
        trainer.optimizer.build(trainer.optimized_variables)
    index = strategy.cluster_resolver.task_id
    generator = tf.random.Generator.from_seed(index)
    images = generator.normal((FLAGS.batch_size, *shape))
    labels = tf.zeros([FLAGS.batch_size], tf.int32)

    @tf.function(autograph=False)
    def step():
        logs = strategy.run(lambda: trainer.train_step((images, labels))["loss"])
        return strategy.experimental_local_results(logs)[0]

    for _ in range(WARM_UP):
        step().numpy()
    before, start = sent_bytes(), time.perf_counter()
    for _ in range(FLAGS.reduced_steps):
        step().numpy()
    seconds = (time.perf_counter() - start) / FLAGS.reduced_steps
    sent = (sent_bytes() - before) / FLAGS.reduced_steps
    if index == 0:
        row = {
            "model": FLAGS.model,
            "synchronized": FLAGS.synchronized,
            "rate": FLAGS.rate,
            "predicted_bytes": stage_one_costs(trainer).reduced_bytes,
            "measured_bytes": sent / WORKERS,
            "step_seconds": seconds,
            "wire_seconds": 8 * sent / bits_per_second(),
        }
        path = pathlib.Path(FLAGS.workdir) / "all_reduce.json"
        path.write_text(json.dumps(row, indent=2) + "\n")


def sent_bytes():
    """Returns the bytes that the loopback interface of this namespace has sent."""
    # The files in /sys can belong to another namespace.
    lines = pathlib.Path("/proc/net/dev").read_text().splitlines()
    (line,) = (line for line in lines if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def bits_per_second():
    """Returns the rate that `tc` has set."""
    shown = subprocess.run(
        ["tc", "-json", "qdisc", "show", "dev", "lo"], check=True, capture_output=True, text=True
    )
    return 8 * json.loads(shown.stdout)[0]["options"]["rate"]


if __name__ == "__main__":
    start(main, check_flags)
