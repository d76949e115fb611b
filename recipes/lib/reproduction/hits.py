"""The hits of a trained network, image by image.

The hits of a run are stored in a small file, so that a network is evaluated once for all the tables
that it takes part in. Another file has the confidence of each image at some paths, from which the
result of routing by confidence follows for any thresholds, and that of a cascade of two networks.
"""

import json
import pathlib

import numpy as np
from keras_dsnet_recipes.lib import data

# "saved" is the network that a run saves. "online" has the weights that the optimizer has trained,
# which a run with a teacher keeps in its checkpoint only.
WEIGHTS = ("saved", "online")
_ROUTINGS = ("gate", "confidence", "gate+confidence", "dynamic", "largest")


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
        return _measure(run, config, split, weights, data_dir)

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
    from keras_dsnet.training.confidence import StepResults

    run = pathlib.Path(run)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    split = split or config["eval_split"]
    path = pathlib.Path(folder) / f"{run.name}_{_file_name('steps', split)}.npz"
    if _is_outdated(path, run):
        _write_steps(path, *_measure_steps(run, config, split, data_dir))
    with np.load(path) as stored:
        widths = tuple(map(int, stored["widths"]))
        parts = (stored[name] for name in ("madds", "trunk", "confidence", "correct"))
        madds, trunk, confidence, correct = parts
        results = StepResults(widths, madds, int(trunk), confidence, correct)
        return results, int(stored["parameters"])


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
    from keras_dsnet.utils.atomic_file import atomic_file

    path.parent.mkdir(parents=True, exist_ok=True)
    plain = [{name: value for name, value in row.items() if name != "hits"} for row in rows]
    bits = np.stack([np.packbits(row["hits"]) for row in rows])
    with atomic_file(path, "wb") as file:
        np.savez_compressed(file, rows=json.dumps(plain), hits=bits)


def _write_steps(path, results, parameters):
    from keras_dsnet.utils.atomic_file import atomic_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, "wb") as file:
        np.savez_compressed(file, parameters=parameters, **results._asdict())


def _measure_steps(run, config, split, data_dir):
    import keras

    from keras_dsnet.models import Normalization
    from keras_dsnet.training.confidence import collect_steps

    if "exits" in config:
        from keras_dsnet_recipes.lib.early_exit import collect_exits, load_early_exit

        model, madds = load_early_exit(run)
        _, batches = _images(config, split, data_dir, model.input_shape, Normalization())
        return collect_exits(model, batches, madds), model.count_params()
    model = keras.models.load_model(_network(run), compile=False)
    _, batches = _images(config, split, data_dir, model.input_shape, model.normalization)
    alone = config.get("alone")
    steps = (0, model.num_widths - 1) if alone is None else (alone,)
    return collect_steps(model, batches, steps), _parameters(model, alone)


def _parameters(model, alone):
    """Returns the number of stored parameters, those of one width where it was trained alone."""
    return model.count_params() if alone is None else model.subnetwork(alone).count_params()


def _images(config, split, data_dir, input_shape, normalization):
    """Returns an `ImageSource` and its evaluation batches."""
    from keras_dsnet.data import evaluation_pipeline, load_source

    folder = data_dir or config["data_dir"]
    source = load_source(config["dataset"], folder, "eval", eval_split=split)
    return source, evaluation_pipeline(
        source,
        image_size=input_shape[1:3],
        batch_size=config["eval_batch_size"],
        preprocess=normalization,
    )


def _measure(run, config, split, weights, data_dir):
    import keras

    from keras_dsnet.training import evaluate_paths

    model = keras.models.load_model(_network(run), compile=False)
    if weights == "online":
        _restore_online(model, run, config, data_dir or config["data_dir"])
    source, batches = _images(config, split, data_dir, model.input_shape, model.normalization)
    # The width of a network that was trained alone is the only one that means something.
    paths = None if config.get("alone") is None else [config["alone"]]
    rows = evaluate_paths(model, batches, paths, per_image=True)
    keep = ("madds", "top1", "top5", "shares", "path_shares", "hits")
    kept = [{name: row[name] for name in keep if name in row} for row in rows]
    more = {"images": source.num_examples, "parameters": _parameters(model, config.get("alone"))}
    return [{"path": str(r["path"]), **more, **k} for r, k in zip(rows, kept)]


def _restore_online(model, run, config, data_dir):
    """Gives a network the online weights of a checkpoint, with recalibrated batch norm."""
    from keras_dsnet.data import load_source, training_pipeline
    from keras_dsnet.training import recalibrate_batch_norm

    with np.load(run / "checkpoint.npz") as stored:
        for number, variable in enumerate(model.variables):
            variable.assign(stored[f"model/{number}"])
    train = load_source(config["dataset"], data_dir, "train", train_split=config["train_split"])
    augmentation = data.AUGMENTATIONS.get(config["dataset"], "imagenet")
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
