"""Data sets and input pipelines."""

from keras_dsnet.data.evaluation_pipeline import evaluation_pipeline
from keras_dsnet.data.image_source import ImageSource
from keras_dsnet.data.load_source import load_source
from keras_dsnet.data.training_pipeline import training_pipeline

__all__ = [
    "ImageSource",
    "evaluation_pipeline",
    "load_source",
    "training_pipeline",
]
