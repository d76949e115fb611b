"""What is done with a network to train and judge it."""

from keras_dsnet.training.csv_log import CsvLog, read_log
from keras_dsnet.training.describe_gates import (
    better_excluded_widths,
    describe_gates,
    static_gain,
)
from keras_dsnet.training.evaluate_paths import evaluate_paths
from keras_dsnet.training.gate_trainer import GateTrainer
from keras_dsnet.training.l2_sgd import L2SGD
from keras_dsnet.training.plots import (
    plot_accuracy_against_madds,
    plot_training_curves,
    plot_width_shares,
)
from keras_dsnet.training.progress_bar import ProgressBar
from keras_dsnet.training.recalibrate_batch_norm import recalibrate_batch_norm
from keras_dsnet.training.run_checkpoint import RunCheckpoint
from keras_dsnet.training.save_network import SaveNetwork
from keras_dsnet.training.save_run_checkpoint import SaveRunCheckpoint
from keras_dsnet.training.schedules import (
    cosine_schedule,
    exponential_schedule,
    scaled_learning_rate,
)
from keras_dsnet.training.supernet_trainer import SupernetTrainer
from keras_dsnet.training.table import format_table, write_table
from keras_dsnet.training.tensorboard_log import TensorBoardLog
from keras_dsnet.training.terminate_on_nan import TerminateOnNaN
from keras_dsnet.training.training_run import TrainingRun
from keras_dsnet.training.workdir import WorkDir

__all__ = [
    "L2SGD",
    "CsvLog",
    "GateTrainer",
    "ProgressBar",
    "RunCheckpoint",
    "SaveNetwork",
    "SaveRunCheckpoint",
    "SupernetTrainer",
    "TensorBoardLog",
    "TerminateOnNaN",
    "TrainingRun",
    "WorkDir",
    "better_excluded_widths",
    "cosine_schedule",
    "describe_gates",
    "evaluate_paths",
    "exponential_schedule",
    "format_table",
    "plot_accuracy_against_madds",
    "plot_training_curves",
    "plot_width_shares",
    "read_log",
    "recalibrate_batch_norm",
    "scaled_learning_rate",
    "static_gain",
    "write_table",
]
