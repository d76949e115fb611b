"""A training run: its folder, checkpoint, logs, tables, plots."""

from keras_dsnet.runs.callbacks import ProgressBar
from keras_dsnet.runs.csv_log import CsvLog, read_log
from keras_dsnet.runs.distributed_loop import RunStoppedError
from keras_dsnet.runs.plots import (
    plot_accuracy_against_madds,
    plot_confidence_curve,
    plot_gallery,
    plot_reliability,
    plot_training_curves,
    plot_width_shares,
)
from keras_dsnet.runs.run_checkpoint import RunCheckpoint, SaveRunCheckpoint
from keras_dsnet.runs.save_network import SaveNetwork
from keras_dsnet.runs.table import format_table, write_table
from keras_dsnet.runs.training_run import TensorBoardLog, TerminateOnNaN, TrainingRun
from keras_dsnet.runs.workdir import ConfigMismatchError, WorkDir

__all__ = [
    "ConfigMismatchError",
    "CsvLog",
    "ProgressBar",
    "RunCheckpoint",
    "RunStoppedError",
    "SaveNetwork",
    "SaveRunCheckpoint",
    "TensorBoardLog",
    "TerminateOnNaN",
    "TrainingRun",
    "WorkDir",
    "format_table",
    "plot_accuracy_against_madds",
    "plot_confidence_curve",
    "plot_gallery",
    "plot_reliability",
    "plot_training_curves",
    "plot_width_shares",
    "read_log",
    "write_table",
]
