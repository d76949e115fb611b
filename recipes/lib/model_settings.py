"""The settings of each network in the programs, available before TensorFlow is loaded."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The settings of one network in the recipes.

    Args:
        application: Str, name of the constructor in `keras_dsnet.applications`.
        spec: Str, name of the class of its spec.
        gates: Int, number of gates.
        widths: Int, number of widths of each gate.
        strides: Int, number of strides of the stem and the stages.
        learning_rate: Float, of stage I at batch 512.
        variants: Dict from the names in the `VARIANTS` of the application's module to the number of
            widths that the variant routes over, or None for all widths.
    """

    application: str
    spec: str
    gates: int
    widths: int
    strides: int
    learning_rate: float
    variants: dict


# The keys are the modules of `keras_dsnet.applications`.
MODELS = {
    "ds_mobilenet": ModelSettings(
        "DSMobileNet", "MobileNetSpec", 1, 14, 6, 0.08, {"S": 4, "M": 8, "L": None}
    ),
    "ds_resnet50": ModelSettings(
        "DSResNet50", "ResNetSpec", 4, 4, 6, 0.2, {"S": None, "M": None, "L": None}
    ),
    "ds_efficientnet_b0": ModelSettings(
        "DSEfficientNetB0", "EfficientNetSpec", 1, 20, 8, 0.2, {"S": 5, "L": 10}
    ),
}
# Names of weights. All belong to ds_mobilenet, and "cifar10" to ds_resnet50 too.
PRESETS = ("imagenet", "cifar10", "tiny_imagenet")
# Number of widths of --widths=paper, and of those that its variants route over.
PAPER_WIDTHS = 18
PAPER_VARIANTS = {"S": 4, "M": 11, "L": None}


def settings_of(model):
    """Returns the `ModelSettings` of a network, or None for one of another family."""
    family = type(model.spec).__name__
    return next((known for known in MODELS.values() if known.spec == family), None)


def choose_variant(model, name):
    """Returns the `Variant` of a network by its name; the default one if the name is None.

    Args:
        model: `DynamicSlimmableNetwork`.
        name: Str or None.

    Raises:
        ValueError: If the network has no such variant, or fewer widths than it asks for.
    """
    from keras_dsnet.applications.build_network import Variant

    from keras_dsnet import applications

    if name is None:
        return Variant()
    module = next((key for key, known in MODELS.items() if known is settings_of(model)), None)
    check_variant(MODELS[module].variants if module else (), name)
    _check_count(_counts(module, model.num_widths)[name], name, model.num_widths)
    application = getattr(applications, module)
    is_paper = _counts(module, model.num_widths) is PAPER_VARIANTS
    return (application.PAPER_VARIANTS if is_paper else application.VARIANTS)[name]


def check_saved_variant(saved, name):
    """Raises a ValueError unless a saved network has a variant; does not build the network.

    Args:
        saved: `checks.SavedNetwork`.
        name: Str or None.
    """
    module = next((key for key, known in MODELS.items() if known.spec == saved.family), None)
    if name is None or module is None:
        return
    num_widths = saved.num_widths or MODELS[module].widths
    check_variant(MODELS[module].variants, name)
    _check_count(_counts(module, num_widths)[name], name, num_widths)


def check_variant(variants, name):
    """Raises a ValueError unless `name` is one of a network's variants.

    Args:
        variants: Iterable of str.
        name: Str.
    """
    if name not in variants:
        raise ValueError(
            f"--variant must be one of {', '.join(variants) or 'none'} for this network. "
            f"Received: --variant={name}"
        )


def variant_routes(model, name):
    """Returns the routes of a variant, or None if `name` is None."""
    if name is None:
        return None
    return choose_variant(model, name).routes or tuple(range(model.num_widths))


def _counts(module, num_widths):
    """Returns the number of widths of each variant, for the released widths or the paper's 18."""
    if module == "ds_mobilenet" and num_widths == PAPER_WIDTHS:
        return PAPER_VARIANTS
    return MODELS[module].variants


def _check_count(count, name, num_widths):
    if count and count > num_widths:
        raise ValueError(f"--variant={name} has {count} widths; this network has {num_widths}.")
