"""Experiment trackers: trackio, TensorBoard, Weights & Biases, MLflow, and functions of the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from seedtune.run.trackers.base import Tracker
from seedtune.run.trackers.packages import MlflowTracker, TensorboardTracker, TrackioTracker, WandbTracker

TRACKERS: Mapping[str, Callable[[], Tracker]] = {
    "trackio": TrackioTracker,
    "tensorboard": TensorboardTracker,
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
}
"""Name in ``report_to`` → constructor, which raises MissingExtraError if the package is not installed."""
