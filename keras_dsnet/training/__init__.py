"""The training of the paper: both stages, optimizer, recalibration, evaluation."""

from keras_dsnet.training.confidence import calibrate_confidence, propose_steps
from keras_dsnet.training.evaluation import (
    better_excluded_widths,
    describe_gates,
    evaluate_paths,
    static_gain,
)
from keras_dsnet.training.gate_trainer import GateTrainer
from keras_dsnet.training.optimizers import (
    L2SGD,
    cosine_schedule,
    exponential_schedule,
    scaled_learning_rate,
    step_schedule,
)
from keras_dsnet.training.recalibrate_batch_norm import recalibrate_batch_norm
from keras_dsnet.training.supernet_trainer import SupernetTrainer
from keras_dsnet.utils.moved_names import forward

__all__ = [
    "L2SGD",
    "GateTrainer",
    "SupernetTrainer",
    "better_excluded_widths",
    "calibrate_confidence",
    "cosine_schedule",
    "describe_gates",
    "evaluate_paths",
    "exponential_schedule",
    "propose_steps",
    "recalibrate_batch_norm",
    "scaled_learning_rate",
    "static_gain",
    "step_schedule",
]

_MOVED = dict.fromkeys(
    (
        "CsvLog",
        "ProgressBar",
        "RunCheckpoint",
        "SaveNetwork",
        "SaveRunCheckpoint",
        "TensorBoardLog",
        "TerminateOnNaN",
        "TrainingRun",
        "WorkDir",
        "format_table",
        "plot_accuracy_against_madds",
        "plot_training_curves",
        "plot_width_shares",
        "read_log",
        "write_table",
    ),
    "keras_dsnet.runs",
)


def __getattr__(name):
    return forward(__name__, name, _MOVED)
