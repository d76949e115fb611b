"""Checks of a program's flags that need no TensorFlow: paths, packages, saved networks."""

import importlib.util
import json
import os
import pathlib
import zipfile

from absl import flags

FLAGS = flags.FLAGS
# Data sets of `keras_dsnet.data.digits`.
DIGITS = ("digits", "distorted_digits")
# The folders and files that a run writes into its work directory.
FOLDERS = ("tables", "plots", "tensorboard")
_FILES = (
    "checkpoint.npz",
    "config.json",
    "labels.txt",
    "log.csv",
    "model.keras",
    "supernet.keras",
)


def check_workdir(name, flag="workdir", folders=(), files=()):
    """Raises an OSError unless a folder and its contents can be created and written.

    Args:
        name: Str, value of the flag.
        flag: Str, name of the flag for messages.
        folders: Names of the folders that the program creates in it.
        files: Names of the files that the program writes into it.
    """
    folder = pathlib.Path(name)
    if not name:
        raise ValueError(f"--{flag} must name a folder. Received: --{flag}=")
    there = folder
    while not _exists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(f"--{flag}={name} is a file, or is inside one: name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"--{flag}={name} cannot be written: no permission in {there}")
    for part in folders:
        inside = folder / part
        if _exists(inside) and not inside.is_dir():
            raise NotADirectoryError(f"--{flag}={name}: {inside} is a file; a folder goes there")
        if inside.is_dir() and not os.access(inside, os.W_OK | os.X_OK):
            raise PermissionError(f"--{flag}={name}: {inside} cannot be written")
    for part in files:
        if (folder / part).is_dir():
            raise IsADirectoryError(
                f"--{flag}={name}: {folder / part} is a folder; a file goes there"
            )


def check_no_run(name):
    """Raises a ValueError if a folder is that of a training run, which keeps its own results.

    Args:
        name: Str, value of --workdir.
    """
    if (pathlib.Path(name) / "config.json").is_file():
        raise ValueError(
            f"--workdir={name} is the folder of a training run, which keeps its own network, "
            "tables and plots: name another folder"
        )


def is_name(dataset, place):
    """Returns whether a data set is known by its name, even if a folder here has that name.

    Args:
        dataset: Str, value of --dataset.
        place: Str, path that the value leads to as that of a folder.
    """
    # As `keras_dsnet.data.load_source` finds what TFDS prepared, which would import TensorFlow.
    patterns = ("dataset_info.json", "*/dataset_info.json", "*/*/dataset_info.json")
    return dataset in DIGITS or any(
        next(pathlib.Path(place).glob(pattern), None) for pattern in patterns
    )


def check_run():
    """Raises an error unless a stage finds its data set and can write its work directory."""
    check_source({name: FLAGS[name].value for name in ("data_dir", "dataset")})
    check_workdir(FLAGS.workdir, folders=FOLDERS, files=_FILES)
    check_plots()


def check_plots():
    """Raises an error if the package that draws the plots is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "The plots need matplotlib, which is not installed: pip install matplotlib"
        )


def check_strides(model, count):
    """Raises an error if --strides does not fit a network, or contradicts --output_stride.

    Args:
        model: Str, name of the network.
        count: Int, number of its strides.
    """
    if FLAGS.strides is None:
        return
    given = ",".join(map(str, FLAGS.strides))
    if len(FLAGS.strides) != count:
        raise ValueError(
            f"--strides must be {count} numbers for --model={model}: of the stem and of each "
            f"stage. Received: --strides={given}"
        )
    if FLAGS.output_stride is not None:
        raise ValueError(
            "--strides and --output_stride both set the strides: give only one. Received: "
            f"--strides={given}, --output_stride={FLAGS.output_stride}"
        )


def check_warmup():
    """Raises an error if --warmup_epochs is not below --epochs."""
    if FLAGS.warmup_epochs >= FLAGS.epochs:
        raise ValueError(
            f"--warmup_epochs must be below --epochs={FLAGS.epochs}. "
            f"Received: --warmup_epochs={FLAGS.warmup_epochs:g}"
        )


def check_output(name, flag="output"):
    """Raises an error unless a TFLite file can be written.

    Args:
        name: Str, value of the flag.
        flag: Str, name of the flag for messages.
    """
    output = pathlib.Path(name)
    if not name:
        raise ValueError(f"--{flag} must name a file that ends in .tflite. Received: --{flag}=")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"--{flag}={name}: there is no folder {output.parent}")
    if output.is_dir():
        raise IsADirectoryError(f"--{flag}={name} is a folder; name a .tflite file")
    if output.suffix != ".tflite":
        raise ValueError(
            f"--{flag} must name a file that ends in .tflite. Received: --{flag}={name}"
        )
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"--{flag}={name}: {output.parent} cannot be written")


def check_source(values):
    """Raises an error if --data_dir or --dataset names a missing folder or package.

    Args:
        values: Dict from the names of these two flags to their values.
    """
    for name in ("data_dir", "dataset"):
        value = values[name]
        is_path = value and (name == "data_dir" or value[0] in "./~" or value[-1] == "/")
        if is_path and not pathlib.Path(value).expanduser().is_dir():
            if pathlib.Path(value).expanduser().is_file():
                raise NotADirectoryError(
                    f"--{name}={value} is a file: name a folder; an archive must be unpacked first"
                )
            raise FileNotFoundError(f"--{name}={value}: there is no such folder")
    if values["dataset"] is not None and not values["dataset"].strip():
        raise ValueError("--dataset must name a data set. Received: --dataset=")
    is_digits = values["dataset"] in DIGITS
    needs_sklearn = is_digits and importlib.util.find_spec("sklearn") is None
    if needs_sklearn:
        raise ValueError(
            f"--dataset={values['dataset']} needs scikit-learn: pip install scikit-learn"
        )


def find_model(name, flag="model", filenames=("model.keras", "supernet.keras")):
    """Returns the path of the saved network in a work directory, or of a file itself.

    Args:
        name: Str, value of the flag.
        flag: Str, name of the flag for messages.
        filenames: Names of the networks that a stage saves in its work directory. The first that
            exists is returned.

    Raises:
        FileNotFoundError: If there is no such network.
    """
    path = pathlib.Path(name)
    candidates = [path / filename for filename in filenames] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"--{flag}={name} is no .keras file and no work directory with {' or '.join(filenames)}"
    )


def check_model(filename, flag="model", detectors=False):
    """Reads the configuration of a saved network without building the network.

    Args:
        filename: Path of the `.keras` file.
        flag: Str, name of the flag for messages.
        detectors: Bool, whether the file may hold a detector, an FSSD.

    Returns:
        A `SavedNetwork`.

    Raises:
        ValueError: If the file does not hold a network of this package with a classifier, nor a
            detector where that is allowed.
    """
    try:
        with zipfile.ZipFile(filename) as archive:
            content = json.loads(archive.read("config.json"))
            saved, config = content["class_name"], dict(content.get("config", {}))
            damaged = archive.testzip()
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError):
        raise ValueError(f"--{flag}: {filename} is no .keras file, or is damaged") from None
    if damaged:
        raise ValueError(f"--{flag}: {filename} is damaged at {damaged}")
    if saved == "FSSD" and detectors:
        return SavedNetwork(_detector_config(config), flag, is_detector=True)
    if saved != "DynamicSlimmableNetwork":
        raise ValueError(
            f"--{flag}: {filename} holds a {saved}; name a DynamicSlimmableNetwork, as the recipes "
            "of the two stages save it"
        )
    if config.get("include_top") is False:
        raise ValueError(f"--{flag}: {filename} has no classifier (include_top=False)")
    return SavedNetwork(config, flag)


def _detector_config(config):
    """Returns the configuration of a detector as if it were that of its backbone."""
    own = ("classes", "routing", "confidence_steps", "thresholds")
    return {**config["backbone"]["config"], **{name: config.get(name) for name in own}}


class SavedNetwork:
    """The configuration of a saved network, against which flags are checked.

    Args:
        config: Dict that the network's `get_config` returned.
        flag: Str, name of the flag that named the file, for messages.
        is_detector: Bool. Defaults to False.

    Attributes:
        classes: Int or None.
        family: Str, name of the class of the spec.
        num_gates: Int.
        gates_trained: Bool.
        num_widths: Int, widths of each gate. It is 0 if the file does not record them; widths are
            then not checked.
        routing: Str or None, how images get their paths. It is None for no file.
        steps: Tuple of ints, the confidence steps. It is empty if the file does not record them.
        image_size: Tuple `(height, width)` in pixels, each of which can be None.
    """

    def __init__(self, config, flag="model", is_detector=False):
        self.flag = flag
        self.is_detector = is_detector
        self.classes = config.get("classes")
        spec = config.get("spec") or {}
        self.family = spec.get("family")
        gated = [stage["channels"] for stage in spec.get("stages", ()) if stage.get("gated")]
        self.num_gates, self.num_widths = len(gated), len(gated[0]) if gated else 0
        self.gates_trained = bool(config.get("gates_trained"))
        self.routing = config.get("routing", "gate") if config else None
        routes = config.get("routes") or ()
        self.steps = tuple(config.get("confidence_steps") or sorted({*routes[:1], *routes[-1:]}))
        self.image_size = tuple((config.get("input_shape") or (None, None))[:2])

    def check_widths(self, widths, name):
        """Raises a ValueError for a width that the network does not have.

        Args:
            widths: Sequence of ints, or None.
            name: Str, name of the flag that lists them.
        """
        if widths and self.num_widths and max(widths) >= self.num_widths:
            raise ValueError(
                f"--{name} must be widths from 0 to {self.num_widths - 1} of "
                f"--{self.flag}={FLAGS[self.flag].value}. "
                f"Received: --{name}={','.join(map(str, widths))}"
            )

    def check_confidence(self, steps, thresholds):
        """Raises a ValueError for steps or a number of thresholds that the network does not have.

        Args:
            steps: Sequence of ints of --steps, or None for those of the network.
            thresholds: Sequence of floats of --thresholds, or None.
        """
        self.check_widths(steps, "steps")
        steps = steps or self.steps
        if thresholds and steps and len(thresholds) != len(steps) - 1:
            raise ValueError(
                f"--thresholds must be {len(steps) - 1} of them, one for each of the steps "
                f"{','.join(map(str, steps))} except the last. "
                f"Received: --thresholds={','.join(map(str, thresholds))}"
            )

    def check_path(self, path, name, separator="-"):
        """Raises a ValueError for a path that the network does not have.

        Args:
            path: Tuple of widths. A single width applies to every gate.
            name: Str, name of the flag that holds the path.
            separator: Str between the widths of a path in the message.
        """
        if not self.num_widths:
            return
        if len(path) not in (1, self.num_gates) or max(path) >= self.num_widths:
            several = f", or {self.num_gates} of them, one per gate," if self.num_gates > 1 else ""
            raise ValueError(
                f"--{name} must be a width from 0 to {self.num_widths - 1}{several} for "
                f"--{self.flag}={FLAGS[self.flag].value}. "
                f"Received: --{name}={separator.join(map(str, path))}"
            )

    def check_image_size(self, size):
        """Raises a ValueError unless the network takes square images of the given size.

        Args:
            size: Int, side in pixels, or None for the size of the network.
        """
        flag = f"--{self.flag}={FLAGS[self.flag].value}"
        if size is None:
            if None in self.image_size:
                raise ValueError(f"{flag} takes images of any size: choose one by --image_size")
        elif any(side not in (None, size) for side in self.image_size):
            raise ValueError(
                f"--image_size must fit {flag}, which takes images of "
                f"{(*self.image_size, 3)}. Received: --image_size={size}"
            )


def source_flags(workdir, names, why):
    """Returns the values of --dataset, --data_dir and a split.

    Without --dataset, the missing values are those of the run that trained the network.

    Args:
        workdir: Folder of the network's file.
        names: Names of these flags.
        why: Str, the reason that images are needed, for the message.

    Returns:
        Dict from the names of the flags to their values.

    Raises:
        ValueError: If --dataset is not given and the folder does not record a data set.
        FileNotFoundError: If the recorded data set is a folder that no longer exists.
    """
    given = {name: FLAGS[name].value for name in names}
    if given["dataset"]:
        return given
    # `read_config` of `keras_dsnet.runs` would import TensorFlow.
    try:
        trained_on = json.loads((pathlib.Path(workdir) / "config.json").read_text("utf-8"))
        run = {name: trained_on.get(name) for name in names} | {"dataset": trained_on["dataset"]}
        places = trained_on.get("places", {})
        place = places.get("dataset")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        if workdir is None:
            raise ValueError(f"{why}: name their data set by --dataset") from None
        raise ValueError(
            f"{why}: name their data set by --dataset. "
            f"{workdir} is not the folder of a training run, which would record it"
        ) from None
    if place is not None and not is_name(run["dataset"], place):
        if not pathlib.Path(place).exists():
            raise FileNotFoundError(
                f"{place}, which {workdir} was trained on, does not exist any more: name the data "
                "set by --dataset"
            )
        run["dataset"] = place
    if "data_dir" in run and "data_dir" in places:
        run["data_dir"] = places["data_dir"]
    return {name: given[name] or run[name] for name in names}


def _exists(path):
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return False
    except OSError:
        # The name is too long, or a folder is not readable.
        raise OSError(f"{path} cannot be used as a path") from None
    return True
