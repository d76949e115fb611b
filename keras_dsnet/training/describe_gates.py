"""What the gates of an evaluated network do, in words."""

import numpy as np

from keras_dsnet.models.path import OFF_ROUTE_ROWS

_COLLAPSED = 0.99


def describe_gates(rows):
    """Says in words what the gates of an evaluated network do, and what they gain.

    Args:
        rows: of `evaluate_paths`, with a row "dynamic".

    Returns:
        One line per gate, numbered from 1: how many widths it uses, or that it collapsed: over 99 %
        of the images took one width. Of several gates a line with the paths in use. And a line with
        the gain over the static widths, see `static_gain`.
    """
    dynamic = next(row for row in rows if row["path"] == "dynamic")
    lines = [_describe(number, gate) for number, gate in enumerate(dynamic["shares"], start=1)]
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


def _describe(number, gate):
    width, share = max(gate.items(), key=lambda item: item[1])
    if share > _COLLAPSED:
        return (
            f"gate {number} collapsed: {share:.1%} of the images take width {width}. Train it on "
            "images that the supernet has not memorised (augmentation, or a held-out split), or "
            "change the loss weights"
        )
    return f"gate {number} uses {len(gate)} widths, width {width} for {share:.1%} of the images"


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


def better_excluded_widths(rows, routes, images=None):
    """Finds widths that routes leave out and that are clearly better than those in them.

    A width is clearly better if its top-1 is above that of the widest route by more than chance
    (two standard errors of the difference), or if it is as good at fewer MAdds.

    Args:
        rows: of `evaluate_paths`: a row for each width; others are left out.
        routes: tuple of ints, the candidate widths of the gates.
        images: int, how many images were measured; None: any difference counts.

    Returns:
        List of pairs `(row, row of the widest route)`, the highest top-1 first.
    """
    static = {row["path"]: row for row in rows if isinstance(row["path"], int)}
    widest = static.get(max(routes))
    if widest is None:
        return []
    noise = 2 * (2 * widest["top1"] * (1 - widest["top1"]) / images) ** 0.5 if images else 0.0
    better = [
        row
        for width, row in static.items()
        if width not in routes
        and (
            row["top1"] > widest["top1"] + noise
            or (row["top1"] >= widest["top1"] and row["madds"] < widest["madds"])
        )
    ]
    better.sort(key=lambda row: (-row["top1"], row["madds"]))
    return [(row, widest) for row in better]
