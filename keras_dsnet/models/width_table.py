"""What every width of a network has and costs."""


def width_table(network, input_shape=None):
    """Returns a row per width, run at every gate.

    Args:
        network: a `DynamicSlimmableNetwork`.
        input_shape: `(height, width, 3)`; None: the network's.

    Returns:
        List of dicts: "path", "rho", "channels", "parameters" and "madds".

    Raises:
        ValueError: the size of the images is open.
    """
    rows = []
    for width in range(network.num_widths):
        cost = network.costs(width, input_shape)
        rows.append(
            {
                "path": width,
                "rho": network.spec.ratios[width],
                "channels": network.spec.gated_channels[width],
                "parameters": cost.parameters,
                "madds": cost.madds + cost.pooling,
            }
        )
    return rows
