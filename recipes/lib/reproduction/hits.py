"""The hits of a trained network, image by image.

The hits of a run are stored in a small file, so that a network is evaluated once for all the tables
that it takes part in. Another file has the confidence of each image at some paths, from which the
result of routing by confidence follows for any thresholds, and that of a cascade of two networks.

Stage II trains only the slimming heads, so that many runs have the static widths of one supernet.
What does not depend on the heads is stored by a checksum of the other variables, and measured once
for all the runs that have these.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import numpy as np
from keras_dsnet_recipes.lib import data

# "saved" is the network that a run saves. "online" has the weights that the optimizer has trained,
# which a run with a teacher keeps in its checkpoint only.
WEIGHTS = ("saved", "online")
_ROUTINGS = ("gate", "confidence", "gate+confidence", "dynamic", "largest")
# Settings of a network and of its spec that change neither its static widths nor their confidence.
_OF_ROUTING = ("routes", "gates_trained", "routing", "confidence_steps", "thresholds")
_OF_ROUTING += ("class_names", "crop_fraction", "name", "trainable", "frozen_layers")
_OF_HEADS = ("slimming_head", "share_encoder", "gate_encoder")


@dataclasses.dataclass(frozen=True)
class Images:
    """Labelled images that a network is measured on.

    Attributes:
        batches: The evaluation batches.
        count: Int, the number of images.
        facts: Tuple of what tells these batches from others.
    """

    batches: Any
    count: int
    facts: tuple


def load_hits(run, folder, split, weights="saved", data_dir=None):
    """Returns the hits of a run, which are measured on first use.

    Args:
        run: Path of the work directory of stage I or II.
        folder: Path of the folder in which hits are stored.
        split: Str, TFDS slice of the images, or None for the evaluation images of the run.
        weights: Str, one of `WEIGHTS`.
        data_dir: Str, folder of prepared data sets. Defaults to that of the run.

    Returns:
        Dict from the names of rows, such as "0", "13" and "dynamic", to dicts with "hits", bool
        `[images]`, "madds", "parameters", the number of those stored, and, for the routed network,
        "shares".
    """
    run = pathlib.Path(run)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    split = split or config["eval_split"]
    path = pathlib.Path(folder) / f"{run.name}_{_file_name(weights, split)}.npz"

    def measure():
        return _measure(run, folder, config, split, weights, data_dir)

    rows = _stored(path, run, measure)
    if not all("parameters" in row for row in rows.values()):
        # A file of an older version.
        path.unlink()
        rows = _stored(path, run, measure)
    return rows


def stored_hits(run, folder, name, measure):
    """Returns the rows of a stored file, which is written if it is missing or older than the run.

    Args:
        run: Path of the work directory of stage I or II.
        folder: Path of the folder in which hits are stored.
        name: Str, the part of the name of the file after that of the run.
        measure: Function without arguments that returns the rows to store.

    Returns:
        Dict from the names of rows to dicts, see `load_hits`.
    """
    name = "".join(c if c.isalnum() else "_" for c in name).strip("_")
    return _stored(pathlib.Path(folder) / f"{run.name}_{name}.npz", run, measure)


def _stored(path, run, measure):
    if _is_outdated(path, run):
        _write(path, measure())
    return _read(path)


def shared_hits(folder, name, model, facts, measure):
    """Returns rows that all runs share whose networks differ only in their slimming heads.

    They are measured on first use. The file has a checksum in its name, so that it is never that of
    another network.

    Args:
        folder: Path of the folder in which hits are stored.
        name: Str, the start of the name of the file.
        model: `DynamicSlimmableNetwork`.
        facts: Whatever the rows depend on beside the network, which JSON can hold.
        measure: Function without arguments that returns the rows to store.

    Returns:
        Dict from the names of rows to dicts, see `load_hits`.
    """
    path = pathlib.Path(folder) / f"{name}_{checksum(model, facts)}.npz"
    if not path.is_file():
        _write(path, measure())
    return _read(path)


def shared_steps(folder, model, widths, images):
    """Returns the `StepResults` that all runs share whose networks differ only in their heads.

    Args:
        folder: Path of the folder in which the results are stored.
        model: `DynamicSlimmableNetwork`.
        widths: Tuple of ints.
        images: `Images`.
    """
    from keras_dsnet.training.confidence import collect_steps

    path = pathlib.Path(folder) / f"steps_{checksum(model, (widths, images.facts))}.npz"
    if not path.is_file():
        _save(path, **collect_steps(model, images.batches, widths)._asdict())
    with np.load(path) as stored:
        return _step_results(stored)


def checksum(model, facts):
    """Returns a checksum of all that the static widths of a network depend on.

    Args:
        model: `DynamicSlimmableNetwork`. Its slimming heads and its routing do not count.
        facts: Whatever else counts, such as the images, which JSON can hold.
    """
    config = {name: value for name, value in model.get_config().items() if name not in _OF_ROUTING}
    spec = {name: value for name, value in config["spec"].items() if name not in _OF_HEADS}
    found = hashlib.sha256(json.dumps([{**config, "spec": spec}, facts], sort_keys=True).encode())
    heads = {id(v) for gate in model.slimming_gates for v in gate.slimming_variables}
    for variable in model.variables:
        if id(variable) not in heads:
            value = variable.numpy()
            found.update(f"{variable.path} {value.dtype} {value.shape}".encode())
            found.update(value.tobytes())
    return found.hexdigest()[:32]


def _read(path):
    with np.load(path) as stored:
        rows = json.loads(str(stored["rows"]))
        return {
            row["path"]: {**row, "hits": np.unpackbits(bits)[: row["images"]].astype(bool)}
            for row, bits in zip(rows, stored["hits"])
        }


def load_steps(run, folder, split, data_dir=None):
    """Returns the confidence of each image at the steps of a run, which is measured on first use.

    The steps are the narrowest and the widest path of a supernet, the one width of a network that
    was trained alone, or the exits of an early-exit network.

    Args:
        run: Path of the work directory of stage I or of early_exit.py.
        folder: Path of the folder in which the steps are stored.
        split: Str, TFDS slice of the images, or None for the evaluation images of the run.
        data_dir: Str, folder of prepared data sets. Defaults to that of the run.

    Returns:
        `(results, parameters)`: `StepResults`, and the number of parameters stored.
    """
    run = pathlib.Path(run)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    split = split or config["eval_split"]
    path = pathlib.Path(folder) / f"{run.name}_{_file_name('steps', split)}.npz"
    if _is_outdated(path, run):
        results, parameters = _measure_steps(run, config, split, data_dir)
        _save(path, parameters=parameters, **results._asdict())
    with np.load(path) as stored:
        return _step_results(stored), int(stored["parameters"])


def static_paths(rows):
    """Returns the rows of the static widths of a network, the slimmest first.

    Args:
        rows: Dict of `load_hits`.
    """
    return sorted(
        (row for name, row in rows.items() if name not in _ROUTINGS), key=lambda row: row["madds"]
    )


def _file_name(what, split):
    return "".join(c if c.isalnum() else "_" for c in f"{what}_{split or 'eval'}").strip("_")


def _is_outdated(path, run):
    changed = max((run / name).stat().st_mtime for name in ("config.json", _network(run).name))
    return not path.is_file() or path.stat().st_mtime < changed


def _network(run):
    names = ("model.keras", "supernet.keras")
    return next(run / name for name in names if (run / name).is_file())


def _write(path, rows):
    plain = [{name: value for name, value in row.items() if name != "hits"} for row in rows]
    bits = np.stack([np.packbits(row["hits"]) for row in rows])
    _save(path, rows=json.dumps(plain), hits=bits)


def _save(path, **arrays):
    from keras_dsnet.utils.atomic_file import atomic_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def _step_results(stored):
    from keras_dsnet.training.confidence import StepResults

    widths = tuple(map(int, stored["widths"]))
    parts = (stored[name] for name in ("madds", "trunk", "confidence", "correct"))
    madds, trunk, confidence, correct = parts
    return StepResults(widths, madds, int(trunk), confidence, correct)


def _measure_steps(run, config, split, data_dir):
    import keras

    from keras_dsnet.models import Normalization
    from keras_dsnet.training.confidence import collect_steps

    if "exits" in config:
        from keras_dsnet_recipes.lib.early_exit import collect_exits, load_early_exit

        model, madds = load_early_exit(run)
        images = load_images(config, split, data_dir, model.input_shape, Normalization())
        return collect_exits(model, images.batches, madds), model.count_params()
    model = keras.models.load_model(_network(run), compile=False)
    images = load_images(config, split, data_dir, model.input_shape, model.normalization)
    alone = config.get("alone")
    steps = (0, model.num_widths - 1) if alone is None else (alone,)
    return collect_steps(model, images.batches, steps), _parameters(model, alone)


def _parameters(model, alone):
    """Returns the number of stored parameters, those of one width where it was trained alone."""
    if alone is not None:
        return model.subnetwork(alone).count_params()
    return _without_wide_front(model).count_params()


def _without_wide_front(model):
    """Returns the network without what only the path "largest" runs, of which no row reports."""
    spec = model.spec
    if not spec.has_wide_front:
        return model
    gated = next(index for index, stage in enumerate(spec.stages) if stage.gated)
    fronts = [dataclasses.replace(s, channels=s.channels[:1]) for s in spec.stages[:gated]]
    spec = dataclasses.replace(spec, stem=spec.stem[:1], stages=(*fronts, *spec.stages[gated:]))
    return type(model)(spec, classes=model.classes, input_shape=model.input_shape[1:])


def load_images(config, split, data_dir, input_shape, normalization, kind="eval"):
    """Returns the `Images` of a run.

    Args:
        config: Dict, the contents of `config.json` of the run.
        split: Str, TFDS slice of the images.
        data_dir: Str, folder of prepared data sets. Defaults to that of the run.
        input_shape: Tuple, the shape of the input of the network.
        normalization: Preprocessing of the images.
        kind: "train" or "eval".
    """
    from keras_dsnet.data import evaluation_pipeline, load_source

    folder, size = data_dir or config["data_dir"], config["eval_batch_size"]
    crop = data.crop_of_config(config)
    source = load_source(config["dataset"], folder, kind, **{f"{kind}_split": split})
    batches = evaluation_pipeline(
        source,
        image_size=input_shape[1:3],
        batch_size=size,
        preprocess=normalization,
        crop_fraction=crop,
    )
    facts = (config["dataset"], folder, kind, split, size, crop)
    return Images(batches, source.num_examples, facts)


def _measure(run, folder, config, split, weights, data_dir):
    import keras

    from keras_dsnet.training import evaluate_paths

    model = keras.models.load_model(_network(run), compile=False)
    if weights == "online":
        _restore_online(model, run, config, data_dir or config["data_dir"])
    images = load_images(config, split, data_dir, model.input_shape, model.normalization)
    # The width of a network that was trained alone is the only one that means something.
    paths = None if config.get("alone") is None else [config["alone"]]

    def measure(**options):
        rows = evaluate_paths(model, images.batches, per_image=True, routings=(), **options)
        keep = ("madds", "top1", "top5", "shares", "path_shares", "hits")
        kept = [{name: row[name] for name in keep if name in row} for row in rows]
        return [{"path": str(r["path"]), "images": images.count, **k} for r, k in zip(rows, kept)]

    facts = (paths, images.facts)
    static = shared_hits(
        folder, "static", model, facts, lambda: measure(paths=paths, dynamic=False)
    )
    parameters = _parameters(model, config.get("alone"))
    # A network without trained gates has no row of a routing.
    rows = [*static.values(), *measure(paths=[])]
    return [{**row, "parameters": parameters} for row in rows]


def _restore_online(model, run, config, data_dir):
    """Gives a network the online weights of a checkpoint, with recalibrated batch norm."""
    from keras_dsnet.data import load_source, training_pipeline
    from keras_dsnet.training import recalibrate_batch_norm

    with np.load(run / "checkpoint.npz") as stored:
        for number, variable in enumerate(model.variables):
            variable.assign(stored[f"model/{number}"])
    train = load_source(config["dataset"], data_dir, "train", train_split=config["train_split"])
    augmentation = data.default_augmentation(config["dataset"])
    batches = training_pipeline(
        train,
        image_size=model.input_shape[1:3],
        batch_size=config["batch_size"],
        seed=config["seed"],
        preprocess=model.normalization,
        augmentation=config["augmentation"] or augmentation,
        **{
            name: config[name]
            for name in ("randaugment", "randaugment_magnitude", "auto_augment", "color_jitter")
        },
        random_erasing=config["random_erasing"],
    )
    steps = min(config["recalibration_steps"], train.steps_per_epoch(config["batch_size"]))
    recalibrate_batch_norm(model, batches, steps=steps)
