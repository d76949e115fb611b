"""The hits of a trained network, image by image.

The hits of a run are stored in a small file, so that a network is evaluated once for all the tables
that it takes part in.
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
        `[images]`, "madds" and, for the routed network, "shares".
    """
    run = pathlib.Path(run)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    split = split or config["eval_split"]
    name = "".join(c if c.isalnum() else "_" for c in f"{weights}_{split or 'eval'}").strip("_")
    path = pathlib.Path(folder) / f"{run.name}_{name}.npz"
    changed = max((run / name).stat().st_mtime for name in ("config.json", _network(run).name))
    if not path.is_file() or path.stat().st_mtime < changed:
        _write(path, _measure(run, config, split, weights, data_dir))
    with np.load(path) as stored:
        rows = json.loads(str(stored["rows"]))
        return {
            row["path"]: {**row, "hits": np.unpackbits(bits)[: row["images"]].astype(bool)}
            for row, bits in zip(rows, stored["hits"])
        }


def static_paths(rows):
    """Returns the rows of the static widths of a network, the slimmest first.

    Args:
        rows: Dict of `load_hits`.
    """
    return sorted(
        (row for name, row in rows.items() if name not in _ROUTINGS), key=lambda row: row["madds"]
    )


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


def _measure(run, config, split, weights, data_dir):
    import keras

    from keras_dsnet.data import evaluation_pipeline, load_source
    from keras_dsnet.training import evaluate_paths

    model = keras.models.load_model(_network(run), compile=False)
    folder = data_dir or config["data_dir"]
    if weights == "online":
        _restore_online(model, run, config, folder)
    source = load_source(config["dataset"], folder, "eval", eval_split=split)
    batches = evaluation_pipeline(
        source,
        image_size=model.input_shape[1:3],
        batch_size=config["eval_batch_size"],
        preprocess=model.normalization,
    )
    # The width of a network that was trained alone is the only one that means something.
    paths = None if config.get("alone") is None else [config["alone"]]
    rows = evaluate_paths(model, batches, paths, per_image=True)
    keep = ("madds", "top1", "top5", "shares", "path_shares", "hits")
    kept = [{name: row[name] for name in keep if name in row} for row in rows]
    images = source.num_examples
    return [{"path": str(r["path"]), "images": images, **k} for r, k in zip(rows, kept)]


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
