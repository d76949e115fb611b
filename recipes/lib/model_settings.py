"""What the paper sets for each network: its learning rate, and its variants S, M and L."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Variant:
    """One of a network's configurations of stage II.

    Args:
        widths: int: the gates may choose that many of the narrowest widths; None: all.
        loss_weights: lambdas of classification, complexity and SGS loss (Eq. 12).
    """

    widths: int | None = None
    loss_weights: tuple = (1.0, 0.5, 1.0)


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """What differs between networks in the recipes.

    Args:
        application: name of the constructor in `keras_dsnet.applications`.
        spec: name of the class of its spec.
        widths: int, of each gate.
        strides: int, how many there are: of the stem and of the stages.
        learning_rate: of stage I at batch 512.
        variants: dict of `Variant`.
    """

    application: str
    spec: str
    widths: int
    strides: int
    learning_rate: float
    variants: dict


MODELS = {
    # For S the paper routes over the four narrowest widths. For M and L it states no routes, only
    # that a target is reached by the routing space: M ends at the width whose MAdds are the
    # paper's M (319M), L has every width.
    "ds_mobilenet": ModelSettings(
        "DSMobileNet",
        "MobileNetSpec",
        14,
        6,
        0.08,
        {"S": Variant(4), "M": Variant(8), "L": Variant()},
    ),
    # Table 6: all routes, and the losses make the difference.
    "ds_resnet50": ModelSettings(
        "DSResNet50",
        "ResNetSpec",
        4,
        6,
        0.2,
        {
            "S": Variant(loss_weights=(0.0, 0.5, 1.0)),
            "M": Variant(loss_weights=(1.0, 0.5, 1.0)),
            "L": Variant(loss_weights=(0.0, 0.0, 1.0)),
        },
    ),
    # Table 8 has two targets: S ends at the width nearest to 270M MAdds, L at that of 400M.
    "ds_efficientnet_b0": ModelSettings(
        "DSEfficientNetB0",
        "EfficientNetSpec",
        20,
        8,
        0.2,
        {"S": Variant(5), "L": Variant(10)},
    ),
}


def settings_of(model):
    """Returns the `ModelSettings` of a network; None for one of another family."""
    family = type(model.spec).__name__
    return next((known for known in MODELS.values() if known.spec == family), None)


def choose_variant(model, name):
    """Returns the `Variant` of a network by its name; None: the default one.

    Raises:
        ValueError: the network has no such variant, or fewer widths than it asks for.
    """
    if name is None:
        return Variant()
    settings = settings_of(model)
    variants = settings.variants if settings else {}
    check_variant(variants, name)
    _check_count(variants[name], name, model.num_widths)
    return variants[name]


def check_saved_variant(saved, name):
    """Raises a ValueError unless a saved network has a variant; builds nothing.

    Args:
        saved: `checks.SavedNetwork`.
        name: str or None.
    """
    settings = next((known for known in MODELS.values() if known.spec == saved.family), None)
    if name is None or settings is None:
        return
    check_variant(settings.variants, name)
    _check_count(settings.variants[name], name, saved.num_widths or settings.widths)


def check_variant(variants, name):
    """Raises a ValueError unless `name` is one of a network's variants.

    Args:
        variants: dict of `Variant`.
        name: str.
    """
    if name not in variants:
        raise ValueError(
            f"--variant must be one of {', '.join(variants) or 'none'} for this network. "
            f"Received: --variant={name}"
        )


def variant_routes(model, name):
    """Returns the routes of a variant, or None where no variant is asked for."""
    if name is None:
        return None
    return tuple(range(choose_variant(model, name).widths or model.num_widths))


def _check_count(variant, name, num_widths):
    if variant.widths and variant.widths > num_widths:
        raise ValueError(
            f"--variant={name} has {variant.widths} widths; this network has {num_widths}."
        )
