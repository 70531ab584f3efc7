"""Classifiers of texts that you train yourself: good or bad, harmless or harmful, on subject or off."""

from gristmill.data.classify.classifier import Classifier
from gristmill.data.classify.train import TrainConfig, train

__all__ = ["Classifier", "TrainConfig", "train"]
