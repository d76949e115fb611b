"""The report of an evaluation: its table, its plots, what is said about its widths."""

from absl import flags

FLAGS = flags.FLAGS

# Images that a gallery chooses from. All of a large data set would not fit into memory.
_GALLERY_IMAGES = 2000


def write_report(model, rows, source, size, folder, crop_fraction, log=None):
    """Prints and writes the table of `evaluate_paths`, and draws the plots.

    Args:
        model: `DynamicSlimmableNetwork` that was evaluated.
        rows: Rows of `evaluate_paths`.
        source: The `ImageSource` of the images.
        size: `(height, width)` of the images, in pixels.
        folder: Path whose folders `tables` and `plots` are written into.
        crop_fraction: Float, that of the evaluation.
        log: Path of the CSV log of a training run, or None.
    """
    from keras_dsnet.runs import (
        plot_accuracy_against_madds,
        plot_training_curves,
        plot_width_shares,
        write_table,
    )

    print(write_table(rows, folder / "tables", "paths"), flush=True)
    plots = folder / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    plot_accuracy_against_madds(rows, plots / "accuracy_against_madds.png")
    if log is not None:
        plot_training_curves(log, plots / "training_curves.png")
    shares = _bars(model, rows)
    if shares:
        plot_width_shares([*shares.values()], plots / "width_shares.png", labels=[*shares])
    if any("shares" in row for row in rows):
        draw_routing(model, source, size, plots, crop_fraction, rows)


def _bars(model, rows):
    """Returns the bars of the plot of shares: a dict from names to shares of slimming ratios."""
    bars = {}
    for row in rows:
        if "shares" not in row or row["path"] == "dynamic":
            continue
        # By confidence alone an image takes one width at all gates.
        gates = row["shares"][:1] if row["path"] == "confidence" else row["shares"]
        for number, gate in enumerate(gates, start=1):
            name = row["path"] if len(gates) == 1 else f"{row['path']} {number}"
            bars[name] = {model.spec.ratios[width]: share for width, share in gate.items()}
    return bars


def draw_routing(model, source, size, plots, crop_fraction, static=(), curve=None):
    """Draws `gallery.png`, `confidence_curve.png` and `reliability.png`, in one pass over images.

    The gallery shows the routing of the network, or routing by confidence if the network routes by
    gates that are not trained. The other plots show the confidence steps of the network, and are
    left out if there is only one.

    Args:
        model: `DynamicSlimmableNetwork`.
        source: The `ImageSource` of the images.
        size: `(height, width)` of the images, in pixels.
        plots: Path of the folder of the plots.
        crop_fraction: Float, that of the evaluation.
        static: Rows of the static widths, see `plot_confidence_curve`.
        curve: Rows of `calibrate_confidence` on these images. By default they are computed, and
            the current thresholds of the network are marked in them.
    """
    from keras_dsnet.runs import plot_confidence_curve, plot_reliability
    from keras_dsnet.training.confidence import collect_steps, confidence_curve, score

    kept, steps = [], model.confidence_steps
    batches = _inputs(model, source, size, crop_fraction, kept)
    results = collect_steps(model, batches, steps, (*size, 3))
    _draw_gallery(model, kept, source, plots / "gallery.png")
    first = results.confidence[:, 0], results.correct[:, 0]
    title = f"width {steps[0]} on {source.name}"
    plot_reliability(*first, plots / "reliability.png", title=title)
    if len(steps) < 2:
        return
    if curve is None:
        curve = confidence_curve(results)
        madds, top1 = score(results, model.thresholds)
        chosen = {"thresholds": model.thresholds, "madds": madds, "top1": top1, "chosen": True}
        curve = [*curve, {**curve[0], **chosen}]
    widths = [row for row in static if isinstance(row["path"], int)]
    title = f"confidence steps {', '.join(map(str, steps))} on {source.name}"
    plot_confidence_curve(curve, plots / "confidence_curve.png", title, widths)


def _inputs(model, source, size, crop_fraction, kept):
    """Yields the batches of an evaluation, and keeps the pixels and labels of the first ones."""
    import tensorflow as tf

    from keras_dsnet.data import evaluation_pipeline

    batches = evaluation_pipeline(
        source,
        image_size=size,
        batch_size=FLAGS.eval_batch_size,
        preprocess=tf.identity,
        crop_fraction=crop_fraction,
    )
    missing = _GALLERY_IMAGES
    for images, labels in batches:
        if missing > 0:
            pixels = tf.clip_by_value(tf.round(images[:missing]), 0, 255)
            kept.append((tf.cast(pixels, tf.uint8).numpy(), labels[:missing].numpy()))
            missing -= len(kept[-1][0])
        yield model.normalization(images), labels


def _draw_gallery(model, kept, source, path):
    import numpy as np
    import tensorflow as tf

    from keras_dsnet.models.routing import confidence_of
    from keras_dsnet.runs import plot_gallery

    by_gate = model.routing != "confidence"
    routing = "confidence" if by_gate and not model.gates_trained else model.routing
    widths, predictions, confidence = [], [], []
    for pixels, _ in kept:
        inputs = tf.cast(model.normalization(tf.cast(pixels, tf.float32)), model.compute_dtype)
        logits, paths, _ = model.run_routed(inputs, routing)
        widths.append(paths.numpy().max(axis=1))
        predictions.append(np.argmax(logits, axis=1))
        confidence.append(confidence_of(logits).numpy())
    images, labels = map(np.concatenate, zip(*kept))
    which = "all" if len(images) == source.num_examples else "the first"
    plot_gallery(
        images,
        np.concatenate(widths),
        labels,
        np.concatenate(predictions),
        np.concatenate(confidence),
        path,
        model.class_names,
        title=f"Routing by {routing}, {which} {len(images):,} images of {source.name}",
    )


def warn_of_better_widths(rows, routes, images, how):
    """Prints a warning if a width outside the routes is clearly better than the routes.

    Args:
        rows: Rows of `evaluate_paths` for every width.
        routes: Tuple of ints, candidate widths of the gates.
        images: Int, number of evaluated images, or None if it is not known.
        how: Str, advice that ends the warning.
    """
    from keras_dsnet.training import better_excluded_widths

    better = better_excluded_widths(rows, routes, images)
    if better:
        best, routed = better[0]
        names = ",".join(map(str, routes))
        print(
            f"warning: width {best['path']}, which is not among the routes {names}, has "
            f"{best['top1']:.1%} top-1 at {best['madds'] / 1e6:.2f}M MAdds; width "
            f"{routed['path']}, which is, has {routed['top1']:.1%} at "
            f"{routed['madds'] / 1e6:.2f}M: {how}",
            flush=True,
        )
