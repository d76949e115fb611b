"""The flags that describe a run, which its folder keeps."""

import pathlib
import sys

from absl import flags

FLAGS = flags.FLAGS
PACKAGE = "keras_dsnet_recipes"
# Its flags, such as --debug, are no part of a run.
_START = f"{PACKAGE}.lib.start"
# These flags do not change the training, so they can differ at every start of a run; see `exempt`.
EXEMPT = (
    "checkpoint_steps",
    "crop_fraction",
    "data_dir",
    "eval_batch_size",
    "eval_split",
    "evaluate_epochs",
    "jax_task",
    "paths",
    "recalibration_steps",
    "start_timeout",
    "strict_images",
    "validation_images",
    "worker_timeout",
)
# The values of these flags can be paths; another spelling of the same path is not a change.
PATHS = (
    "backbone",
    "data_dir",
    "dataset",
    "detector",
    "gates_from",
    "ranges",
    "supernet",
    "weights",
)


def exempt():
    """Returns the names of the flags that do not change the training of this program.

    Images that a detector is evaluated on are left out of its training, so that there --eval_split
    changes it.
    """
    has_boxes = "box_augmentation" in FLAGS
    return tuple(name for name in EXEMPT if name != "eval_split" or not has_boxes)


def own_modules():
    """Returns the names of the modules that define the flags of the program."""
    modules = FLAGS.flags_by_module_dict()
    return [name for name in modules if name == sys.argv[0] or name.startswith(f"{PACKAGE}.")]


def configuration():
    """Returns the flags of the run except --workdir, a dict from names to values for JSON."""
    modules = FLAGS.flags_by_module_dict()
    own = [name for name in own_modules() if name != _START]
    names = {flag.name for module in own for flag in modules[module]} - {"workdir"}
    return {name: _as_text(FLAGS[name].value) for name in sorted(names)}


def shared_configuration():
    """Returns the flags that must be equal on all workers of a run.

    Of a path only its last part counts, since the folders of machines differ.
    """
    free = exempt()
    shared = {name: value for name, value in configuration().items() if name not in free}
    for name in PATHS:
        if isinstance(shared.get(name), str):
            shared[name] = pathlib.PurePath(shared[name]).name
    return shared


def _as_text(value):
    # Lists are stored like the lists of absl, whose items are strings.
    return [str(item) for item in value] if isinstance(value, list) else value
