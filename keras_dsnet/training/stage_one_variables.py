"""Which variables stage I trains, and which of them it does not decay."""

from keras_dsnet.models.topology import walk


def stage_one_variables(sections):
    """Returns the trainable variables of sections, slimming heads left out.

    Args:
        sections: tuples of `Step`.

    Returns:
        List of `keras.Variable`, in the order of the network.
    """
    layers = [step.layer for steps in sections for step in walk(steps) if step.layer is not None]
    slimming = {id(v) for layer in layers for v in getattr(layer, "slimming_variables", [])}
    return [v for layer in layers for v in layer.trainable_variables if id(v) not in slimming]


def undecayed_variables(sections, decay_norms_and_biases=False):
    """Returns the variables that have no weight decay: gates, and by default norms and biases.

    Args:
        sections: tuples of `Step`.
        decay_norms_and_biases: bool: leave out the gates alone.

    Returns:
        List of `keras.Variable`.
    """
    undecayed = []
    for step in (step for steps in sections for step in walk(steps)):
        if step.kind == "gate":
            undecayed += step.layer.variables
        elif step.layer is not None and not decay_norms_and_biases:
            variables = step.layer.trainable_variables
            undecayed += [v for v in variables if v.name in ("gamma", "beta", "bias")]
    return undecayed
