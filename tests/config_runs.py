"""Training programs, run for a list of flag files up to the first step of each.

    python config_runs.py PROGRAM FOLDER CONFIG...

Writes what each run has set up to FOLDER/settings.json, by the name of its flag file. The data set
is a few random images and the networks are small, so that this takes seconds; flags, optimizer,
schedule and trainer are the program's own.
"""

import functools
import importlib.util
import json
import pathlib
import sys

import keras
import numpy as np
from absl import flags

IMAGES = 2048
FLAGS = flags.FLAGS
SMALL = {
    "DSMobileNet": {"alpha": 0.25},
    "DSResNet50": {"alpha": 0.25},
    "DSEfficientNetB0": {"alpha": 0.5},
}
# Arguments of the trainers of either stage.
TRAINER = (
    "target", "num_random", "temperature", "label_smoothing", "label_path", "ema_momentum",
    "routes", "loss_weights", "strategy", "estimator", "seed",
)  # fmt: skip


class _FirstStepReached(Exception):  # noqa: N818
    """Ends a program where it would begin to train."""


def load_program(path):
    """Returns a program as a module; its flags are defined, and it has not started."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(f"program_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(*arguments):
    """Parses a command line as if it was the first."""
    for name in FLAGS:
        FLAGS[name].unparse()
    FLAGS.unparse_flags()
    FLAGS(["program", *map(str, arguments)])


def replace(function, stand_in):
    """Replaces a function wherever it has been imported."""
    for path, module in list(sys.modules.items()):
        # TensorFlow has modules that are loaded when somebody looks into them.
        if path.startswith("tensorflow"):
            continue
        for name, value in list(vars(module).items()):
            if value is function:
                setattr(module, name, stand_in)


class Recorder:
    """Stands in for what is slow or needs data, and keeps what it was called with."""

    def __init__(self):
        self.networks, self.settings, self.family = {}, {}, None

    def install(self):
        from keras_dsnet import applications
        from keras_dsnet.data import load_source, training_pipeline
        from keras_dsnet.data.image_source import ArraySource
        from keras_dsnet.models import with_slimming_head
        from keras_dsnet.runs import TrainingRun

        random = np.random.default_rng(0)
        images = random.integers(0, 256, (IMAGES, 8, 8, 3), "uint8")
        source = ArraySource("images", images, np.arange(IMAGES) % 10, 10)
        replace(load_source, lambda *_, **__: source)
        replace(training_pipeline, self.pipeline)
        replace(TrainingRun, self.run)
        replace(with_slimming_head, self.with_slimming_head)
        replace(keras.models.load_model, lambda *_, **__: self.network(self.family))
        for name in SMALL:
            self.networks[name] = getattr(applications, name)
            replace(self.networks[name], functools.partial(self.make, name))

    def network(self, name):
        if not isinstance(self.networks[name], keras.Model):
            small = {"input_shape": (32, 32, 3), "classes": 10, **SMALL[name]}
            self.networks[name] = self.networks[name](**small)
        return self.networks[name]

    def make(self, name, **options):
        self.settings["application"], self.settings["options"] = name, options
        # Its optimizer and its schedule do not depend on the network.
        return self.network("DSMobileNet")

    def with_slimming_head(self, model, slimming_head, share_encoder, **_):
        self.settings["head"] = [slimming_head, share_encoder]
        return model

    def pipeline(self, source, **options):
        self.settings["augmentation"] = {
            name: value
            for name, value in options.items()
            if isinstance(value, (str, int, float, list, tuple, type(None)))
        }

    def run(self, trainer, workdir, batches, steps_per_epoch, epochs, batch_size, **_):
        batches(0)
        optimizer = trainer.optimizer
        self.settings.update(
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            batch_size=batch_size,
            rates=_rates(optimizer, epochs, steps_per_epoch),
            optimizer=[type(optimizer).__name__, optimizer.momentum, optimizer.nesterov],
            weight_decay=optimizer.weight_decay,
            trainer={name: getattr(trainer, name) for name in TRAINER if hasattr(trainer, name)},
            decayed=_decayed(trainer) if optimizer.weight_decay else [],
        )
        raise _FirstStepReached


def _rates(optimizer, epochs, steps_per_epoch):
    """Returns the learning rate at the start of every epoch, and after the last."""
    rates = []
    for epoch in range(epochs + 1):
        optimizer.iterations.assign(epoch * steps_per_epoch)
        rates.append(float(optimizer.learning_rate))
    optimizer.iterations.assign(steps_per_epoch)
    return rates


def _decayed(trainer):
    """Returns the paths of the variables that a step without gradients changes."""
    variables = trainer.model.trainable_variables
    values = [np.array(variable) for variable in variables]
    for variable in variables:
        variable.assign(np.ones(variable.shape))
    trainer.optimizer.apply([np.zeros_like(value) for value in values], variables)
    decayed = [v.path for v in variables if not np.all(np.array(v) == 1)]
    for variable, value in zip(variables, values):
        variable.assign(value)
    return decayed


def _family(name):
    if "resnet" in name:
        return "DSResNet50"
    return "DSEfficientNetB0" if "efficientnet" in name else "DSMobileNet"


def main(program, folder, *configs):
    folder = pathlib.Path(folder)
    module, recorder = load_program(pathlib.Path(program)), Recorder()
    recorder.install()
    settings = {}
    for config in map(pathlib.Path, configs):
        recorder.settings, recorder.family = {}, _family(config.stem)
        arguments = [f"--flagfile={config}", f"--workdir={folder / config.stem}"]
        if "supernet" in FLAGS:
            supernet = folder / f"{recorder.family}.keras"
            if not supernet.exists():
                recorder.network(recorder.family).save(supernet)
            arguments.append(f"--supernet={supernet}")
        parse(*arguments)
        module.check_flags()
        try:
            module.main([])
        except _FirstStepReached:
            settings[config.stem] = recorder.settings
    (folder / "settings.json").write_text(json.dumps(settings))


if __name__ == "__main__":
    main(*sys.argv[1:])
