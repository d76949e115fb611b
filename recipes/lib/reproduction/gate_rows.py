"""The rows of gates in the tables of the paper: those that can be judged, with their neighbours.

A gate can gain nothing from a supernet whose widths are equally accurate, and the choices of a
supernet that is not trained yet mean little. `refusal` finds both on the images of every choice.
"""

import json
import pathlib

from keras_dsnet_recipes.lib.reproduction import comparison, hits

NOT_TESTED = "not tested"
# What a DS-ResNet must reach on the images of every choice, so that its gates are reported: top-1
# at the widest, by the name of the data, and the distance between both ends.
LEAST_WIDEST = {"cifar10": 0.80, "tiny_imagenet": 0.0}
LEAST_DISTANCE = 0.03


def refusal(run, found, data):
    """Returns why the gates of a run cannot be judged, or None.

    Args:
        run: `planned_runs.Run`.
        found: Dict of `hits.load_hits` on the images of every choice.
        data: Str, the name of the data. The digits of `--quick` have no limits.

    Returns:
        Dict with "run", "widest" and "distance", both as fractions, or None.
    """
    if not run.supernet or "ds_resnet" not in run.supernet.arm.config or data not in LEAST_WIDEST:
        return None
    static = hits.static_paths(found)
    widest = float(static[-1]["hits"].mean())
    distance = widest - float(static[0]["hits"].mean())
    # Hits are counted, so that a limit that is met exactly must not fail by rounding.
    if widest >= LEAST_WIDEST[data] - 1e-9 and distance >= LEAST_DISTANCE - 1e-9:
        return None
    return {"run": run.name, "widest": widest, "distance": distance}


def refusals(runs, load, data):
    """Returns the refusals of the gates among some runs.

    Args:
        runs: List of `planned_runs.Run`.
        load: Function of a run that returns its hits on the images of every choice.
        data: Str, the name of the data.

    Returns:
        Dict from the names of the refused runs to the dicts of `refusal`.
    """
    gated = [run for run in runs if run.supernet]
    found = ((run.name, refusal(run, load(run), data)) for run in gated)
    return {name: reason for name, reason in found if reason}


def joint_verdict(verdicts, claimed, refused):
    """Returns the verdict of a table.

    Args:
        verdicts: The verdicts of its claimed differences that were measured.
        claimed: Int, the number of its claimed differences.
        refused: Dict of `refusals`.
    """
    if refused and not verdicts:
        return NOT_TESTED
    found = comparison.joint_verdict(verdicts, claimed)
    # What holds for some supernets only is not a result for all.
    return comparison.UNDECIDED if refused and found == comparison.HOLDS else found


def easy_share(folder):
    """Returns the share of easy images in the last epoch of a run of stage II, or None.

    Args:
        folder: Path of the work directory of the run.
    """
    from keras_dsnet.runs import read_log

    path = pathlib.Path(folder) / "log.csv"
    values = [row["easy"] for row in read_log(path) if row.get("easy")] if path.is_file() else []
    return float(values[-1]) if values else None


def confidence_row(run, folder, split, max_madds, data_dir=None):
    """Returns the hits of routing by confidence in the network of a run of stage II.

    The images that the gates learned from choose the thresholds: those of the best accuracy at no
    more than the multiply-adds of the gates.

    Args:
        run: Path of the work directory of stage II.
        folder: Path of the folder in which hits are stored.
        split: Str, TFDS slice of the images, or None for the evaluation images of the run.
        max_madds: Float, multiply-adds of the gates on the images of every choice.
        data_dir: Str, folder of prepared data sets. Defaults to that of the run.

    Returns:
        Dict with "hits", bool `[images]`, "madds" and "thresholds".
    """
    run = pathlib.Path(run)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    split = split or config["eval_split"]

    def measure():
        return _measure(run, folder, config, split, max_madds, data_dir)

    return hits.stored_hits(run, folder, f"confidence_{split or 'eval'}", measure)["confidence"]


def _measure(run, folder, config, split, max_madds, data_dir):
    import keras

    from keras_dsnet.training import evaluate_paths
    from keras_dsnet.training.confidence import choose_row, confidence_curve

    model = keras.models.load_model(run / "model.keras", compile=False)
    steps = model.confidence_steps

    def load(kind, name):
        shape, normalization = model.input_shape, model.normalization
        return hits.load_images(config, name, data_dir, shape, normalization, kind)

    learned = hits.shared_steps(folder, model, steps, load("train", config["train_split"]))
    limit = max(max_madds, model.madds(steps[0]))
    model.thresholds = choose_row(confidence_curve(learned), learned, limit, None)["thresholds"]
    images = load("eval", split)

    def measure():
        routed = {"dynamic": False, "routings": ("confidence",), "per_image": True}
        (row,) = evaluate_paths(model, images.batches, [], **routed)
        kept = {name: row[name] for name in ("path", "madds", "top1", "hits")}
        return [{**kept, "images": images.count, "thresholds": list(model.thresholds)}]

    # Gates of the same mean multiply-adds have the same thresholds.
    facts = (steps, model.thresholds, images.facts)
    return list(hits.shared_hits(folder, "confidence", model, facts, measure).values())


def line_of_arms(arms, madds):
    """Returns the line between networks that were trained alone, at given multiply-adds.

    Args:
        arms: List of dicts from seeds to the row of the only path of a network.
        madds: Float.

    Returns:
        float array `[seeds, images]` for the seeds that all arms have, or None where the line does
        not reach.
    """
    import numpy as np

    seeds = sorted(set.intersection(*map(set, arms))) if arms else []
    lines = []
    for seed in seeds:
        rows = [arm[seed] for arm in arms]
        costs = [row["madds"] for row in rows]
        lines.append(comparison.static_line([row["hits"] for row in rows], costs, madds))
    return np.stack(lines) if lines and all(line is not None for line in lines) else None
