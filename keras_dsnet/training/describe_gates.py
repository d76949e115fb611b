"""What the gates of an evaluated network do, in words."""

import numpy as np

from keras_dsnet.models.path import OFF_ROUTE_ROWS

_COLLAPSED = 0.99


def describe_gates(rows):
    """Says in words what the gates of an evaluated network do, and what they gain.

    Args:
        rows: of `evaluate_paths`, with a row "dynamic".

    Returns:
        One line per gate: how many widths it uses, or that it collapsed: over 99 % of the images
        took one width. Of several gates a line with the paths in use. And a line with the gain over
        the static widths, see `static_gain`.
    """
    dynamic = next(row for row in rows if row["path"] == "dynamic")
    lines = [_describe(index, gate) for index, gate in enumerate(dynamic["shares"])]
    if paths := dynamic.get("path_shares"):
        path, share = next(iter(paths.items()))
        lines.append(f"{len(paths)} paths are in use, {path} for {share:.1%} of the images")
    gain = static_gain(rows)
    if gain is not None:
        lines.append(
            f"top-1 is {abs(gain):.2%} {'above' if gain >= 0 else 'below'} the line between the "
            f"static widths at the same {dynamic['madds'] / 1e6:.2f}M MAdds"
        )
    return "\n".join(lines)


def _describe(index, gate):
    width, share = max(gate.items(), key=lambda item: item[1])
    if share > _COLLAPSED:
        return (
            f"gate {index} collapsed: {share:.1%} of the images take width {width}. Train it on "
            "images that the supernet has not memorised (augmentation, or a held-out split), or "
            "change the loss weights"
        )
    return f"gate {index} uses {len(gate)} widths, width {width} for {share:.1%} of the images"


def static_gain(rows):
    """Returns what the dynamic network gains over the static ones at its mean MAdds.

    Args:
        rows: of `evaluate_paths`: static paths and a row "dynamic". The row "largest", whose front
            is another one, is no point of their line.

    Returns:
        float: its top-1 less that of the line between the two static paths whose MAdds are next to
        its own, on the scale 0..1; None where its MAdds lie beyond the static paths'.
    """
    dynamic = next(row for row in rows if row["path"] == "dynamic")
    static = [row for row in rows if row["path"] not in OFF_ROUTE_ROWS]
    static = sorted((row["madds"], row["top1"]) for row in static)
    if not static or not static[0][0] <= dynamic["madds"] <= static[-1][0]:
        return None
    madds, accuracies = zip(*static)
    return float(dynamic["top1"] - np.interp(dynamic["madds"], madds, accuracies))
