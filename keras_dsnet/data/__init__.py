"""Data sets of labelled images, read into input pipelines."""

from keras_dsnet.data.image_source import ImageSource
from keras_dsnet.data.load_source import load_source
from keras_dsnet.data.pipelines import evaluation_pipeline, training_pipeline

__all__ = [
    "ImageSource",
    "evaluation_pipeline",
    "load_source",
    "training_pipeline",
]
