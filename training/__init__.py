"""A single run: its parameters, training engine and run folder. From Python, `training.run` trains a network."""

from training.api import Trained, run

__all__ = ["Trained", "run"]
