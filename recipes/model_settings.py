"""The settings of each network in the recipes."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """What differs between networks in the recipes, known before TensorFlow is loaded.

    Args:
        application: name of the constructor in `keras_dsnet.applications`.
        spec: name of the class of its spec.
        widths: int, number of widths of each gate.
        strides: int, number of strides of the stem and the stages.
        learning_rate: float, of stage I at batch 512.
        variants: tuple of str, the names in the `VARIANTS` of the application's module.
    """

    application: str
    spec: str
    widths: int
    strides: int
    learning_rate: float
    variants: tuple


# The keys are the modules of `keras_dsnet.applications`.
MODELS = {
    "ds_mobilenet": ModelSettings("DSMobileNet", "MobileNetSpec", 14, 6, 0.08, ("S", "M", "L")),
    "ds_resnet50": ModelSettings("DSResNet50", "ResNetSpec", 4, 6, 0.2, ("S", "M", "L")),
    "ds_efficientnet_b0": ModelSettings(
        "DSEfficientNetB0", "EfficientNetSpec", 20, 8, 0.2, ("S", "L")
    ),
}
# Widths of --widths=paper.
PAPER_WIDTHS = 18


def settings_of(model):
    """Returns the `ModelSettings` of a network; None for one of another family."""
    family = type(model.spec).__name__
    return next((known for known in MODELS.values() if known.spec == family), None)


def choose_variant(model, name):
    """Returns the `Variant` of a network by its name; None: the default one.

    Raises:
        ValueError: the network has no such variant, or fewer widths than it asks for.
    """
    from keras_dsnet.applications.build_network import Variant

    from keras_dsnet import applications

    if name is None:
        return Variant()
    module = next((key for key, known in MODELS.items() if known is settings_of(model)), None)
    check_variant(MODELS[module].variants if module else (), name)
    application = getattr(applications, module)
    is_paper = module == "ds_mobilenet" and model.num_widths == PAPER_WIDTHS
    variant = (application.PAPER_VARIANTS if is_paper else application.VARIANTS)[name]
    if variant.routes and variant.routes[-1] >= model.num_widths:
        raise ValueError(
            f"--variant={name} has {len(variant.routes)} widths; this network has "
            f"{model.num_widths}."
        )
    return variant


def check_variant(variants, name):
    """Raises a ValueError unless `name` is one of a network's variants.

    Args:
        variants: tuple of str.
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
    return choose_variant(model, name).routes or tuple(range(model.num_widths))
