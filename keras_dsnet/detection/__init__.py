"""Detection of objects: data with bounding boxes, evaluation, plots."""

from keras_dsnet.detection.average_precision import DetectionMetric
from keras_dsnet.detection.backbone import as_backbone
from keras_dsnet.detection.calibrate_detector import calibrate_detector
from keras_dsnet.detection.compare_confidences import compare_confidences
from keras_dsnet.detection.detection_gate_trainer import DetectionGateTrainer
from keras_dsnet.detection.detection_trainer import DetectionTrainer
from keras_dsnet.detection.evaluation import class_table, evaluate_detection
from keras_dsnet.detection.fssd import FSSD
from keras_dsnet.detection.load_detection_source import load_detection_source
from keras_dsnet.detection.pipelines import (
    detection_evaluation_pipeline,
    detection_training_pipeline,
)
from keras_dsnet.detection.plots import plot_detections, plot_precision_recall

__all__ = [
    "FSSD",
    "DetectionGateTrainer",
    "DetectionMetric",
    "DetectionTrainer",
    "as_backbone",
    "calibrate_detector",
    "class_table",
    "compare_confidences",
    "detection_evaluation_pipeline",
    "detection_training_pipeline",
    "evaluate_detection",
    "load_detection_source",
    "plot_detections",
    "plot_precision_recall",
]
