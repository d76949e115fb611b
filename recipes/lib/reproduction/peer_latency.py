"""The latency on LiteRT of everything that an image can run in the networks of a table."""

import json
import pathlib

from keras_dsnet_recipes.lib.reproduction.paper_tables import EARLY_EXIT
from keras_dsnet_recipes.lib.reproduction.peers import finished

# Processes of each file, and turns of each process.
_LOADS, _ROUNDS = 4, 3


def load(path):
    """Returns the latency that an earlier run has measured, or None.

    Args:
        path: Path of the file of `measure`.
    """
    if not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8"))["ms"]


def measure(table, runs, workdir, path):
    """Times the network of the first finished seed of each arm, with one thread, in turns.

    A network that routes by confidence is timed twice: with a threshold of 0, where every image
    stops at the first step, and with 1, where every image goes on. An early-exit network is timed
    up to each exit.

    Args:
        table: A `Table` with peers.
        runs: List of `Run`.
        workdir: Path of the folder with the folders of the runs.
        path: Path of the JSON file to write.

    Returns:
        Dict from the names in `Point.ends`, of every seed, to median milliseconds.
    """
    from keras_dsnet_recipes.benchmarks.timing import low_and_middle, time_in_turns

    from keras_dsnet.utils.atomic_file import atomic_file

    done = finished(table, runs, workdir)
    firsts = {}
    for run in sorted(done, key=lambda run: run.seed):
        firsts.setdefault(run.arm.name, run)
    files = {}
    for run in firsts.values():
        folder = pathlib.Path(workdir) / "files" / run.name
        folder.mkdir(parents=True, exist_ok=True)
        export = _export_exits if run.arm.program == EARLY_EXIT else _export_network
        files |= export(table, run, workdir / run.name, folder)
    times, _ = time_in_turns(files, {}, _LOADS, _ROUNDS)
    pairs = {name: low_and_middle(each) for name, each in times.items()}
    measured = {name: middle for name, (_, middle) in pairs.items()}
    for peer in table.peers:
        if peer.routed and len(peer.arms) > 1:
            measured |= _cascade(peer, done, firsts, measured)
    # Other seeds are the same network with other weights.
    for run in done:
        first = firsts[run.arm.name].name
        for name in [name for name in measured if name.partition("/")[0] == first]:
            measured[name.replace(first, run.name, 1)] = measured[name]
    content = {"ms": measured, "min_and_median": pairs}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(json.dumps(content, indent=1) + "\n")
    return measured


def _cascade(peer, done, first_runs, measured):
    """Returns the latency of a cascade: that of the networks which run one after the other."""
    by_arm = {(run.arm.name, run.seed): run for run in done}
    found = {}
    for each in {run.seed for run in done}:
        runs = [by_arm.get((arm, each)) for arm in peer.arms]
        firsts = [first_runs.get(arm) for arm in peer.arms]
        if not all(runs) or not all(firsts):
            continue
        total = 0.0
        for count, first in enumerate(firsts, start=1):
            total += next(ms for name, ms in measured.items() if _is_of(name, first.name))
            found["+".join(run.name for run in runs[:count])] = total
    return found


def _is_of(name, run):
    return name.partition("/")[0] == run


def _export_network(table, run, folder, files):
    """Exports what the peers of a table need of a run of stage I; returns files by name."""
    import keras

    from keras_dsnet.export import export_subnetwork

    network = folder / "supernet.keras"
    model = keras.models.load_model(network, compile=False)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    alone = config.get("alone")
    peers = [peer for peer in table.peers if run.arm.name in peer.arms]
    made = {}
    if alone is not None:
        path = files / "static.tflite"
        _make(path, network, lambda: export_subnetwork(model, alone, path))
        name = run.arm.name if any(len(peer.arms) > 1 for peer in peers) else str(alone)
        return {f"{run.name}/{name}": path}
    if any(not peer.routed for peer in peers):
        for width in sorted({0, (model.num_widths - 1) // 2, model.num_widths - 1}):
            path = files / f"static_{width}.tflite"
            _make(
                path, network, lambda width=width, path=path: export_subnetwork(model, width, path)
            )
            made[f"{run.name}/{width}"] = path
    if any(peer.routed for peer in peers):
        model.routes = model.confidence_steps = (0, model.num_widths - 1)
        model.routing = "confidence"
        for step in (0, 1):
            model.thresholds = (float(step),)
            path = files / f"routed_{step}.tflite"
            _make(
                path, network, lambda path=path: model.export(path, format="litert", verbose=False)
            )
            made[f"{run.name}/step_{step}"] = path
    return made


def _make(path, network, export):
    """Exports a file unless it is newer than its network."""
    if not path.is_file() or path.stat().st_mtime < network.stat().st_mtime:
        export()


def _export_exits(table, run, folder, files):
    """Exports an early-exit network up to each of its exits; returns files by name."""
    import keras
    import tensorflow as tf
    from keras_dsnet_recipes.lib.early_exit import load_early_exit

    from keras_dsnet.export.conversion import convert

    model, madds = load_early_exit(folder)
    made = {}
    for step in range(len(madds)):
        # An image that stops here has run all exits before too.
        until = keras.Model(model.inputs, model.outputs[: step + 1])

        def infer(image, until=until):
            outputs = until(image, training=False)
            outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
            return {f"output_{number}": each for number, each in enumerate(outputs)}

        path = files / f"exit_{step}.tflite"
        spec = tf.TensorSpec((1, *model.input_shape[1:]), tf.float32)
        path.write_bytes(convert(infer, {"image": spec}, None))
        made[f"{run.name}/step_{step}"] = path
    return made
