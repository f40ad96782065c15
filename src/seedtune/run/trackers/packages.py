"""The trackers of four packages, and that of a user's function.

Each package's own environment variables say where it keeps its data and who the user is.
"""

from __future__ import annotations

import json
import netrc
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from seedtune.rewards.optional import optional
from seedtune.run.trackers.base import Row, TrackedRun, numbers, prefixed

PROJECT = "seedtune"
"""Project or experiment of all runs, unless TRACKIO_PROJECT, WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME names another."""


class TrackioTracker:
    """trackio: local first, in ``TRACKIO_DIR``, and shown by ``trackio show``."""

    def __init__(self) -> None:
        self.trackio = optional("trackio", "report_to=trackio")
        self.run: Any = None

    def start(self, run: TrackedRun) -> None:
        """Open or continue the run of this name."""
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        parameters = dict(run.parameters)
        self.run = self.trackio.init(project, name=run.name, config=parameters, resume="allow", embed=False)

    def log(self, metrics: Row, step: int) -> None:
        """Log the numbers."""
        self.run.log(prefixed(metrics), step=step)

    def table(self, rows: Sequence[Row], step: int) -> None:
        """Log the completions as a table."""
        self.run.log({"completions": self.trackio.Table(data=[dict(row) for row in rows])}, step=step)

    def finish(self, complete: bool) -> None:
        """Write what is buffered."""
        if self.run is not None:
            self.run.finish()


class TensorboardTracker:
    """TensorBoard: event files in the run directory."""

    def __init__(self) -> None:
        optional("tensorboard", "report_to=tensorboard")
        self.module = optional("torch.utils.tensorboard", "report_to=tensorboard")
        self.writer: Any = None

    def start(self, run: TrackedRun) -> None:
        """Open a further event file in ``tensorboard/``, and write the parameters as a text."""
        self.writer = self.module.SummaryWriter(str(run.folder / "tensorboard"))
        self.writer.add_text("parameters", json.dumps(dict(run.parameters), indent=2))

    def log(self, metrics: Row, step: int) -> None:
        """Log the numbers, in float32."""
        for name, value in prefixed(metrics).items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def table(self, rows: Sequence[Row], step: int) -> None:
        """Log nothing: TensorBoard has no tables."""

    def finish(self, complete: bool) -> None:
        """Close the event file."""
        if self.writer is not None:
            self.writer.close()


class WandbTracker:
    """Weights & Biases; offline without a key, instead of a prompt in the middle of a run."""

    def __init__(self) -> None:
        self.wandb = optional("wandb", "report_to=wandb")
        self.run: Any = None

    def start(self, run: TrackedRun) -> None:
        """Open or continue the run with this id."""
        settings = self.wandb.Settings(silent=True, console="off")
        key = os.environ.get("WANDB_API_KEY") or _has_password(self.wandb.setup().settings.base_url)
        self.run = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.name,
            resume="allow",
            config=dict(run.parameters),
            mode=None if key or "WANDB_MODE" in os.environ else "offline",
            settings=settings,
        )

    def log(self, metrics: Row, step: int) -> None:
        """Log the numbers."""
        self.run.log(prefixed(metrics), step=step)

    def table(self, rows: Sequence[Row], step: int) -> None:
        """Log the completions as a table."""
        columns = list(rows[0]) if rows else []
        data = [[row[name] for name in columns] for row in rows]
        self.run.log({"completions": self.wandb.Table(columns=columns, data=data)}, step=step)

    def finish(self, complete: bool) -> None:
        """Send or write what is buffered."""
        if self.run is not None:
            self.run.finish(exit_code=0 if complete else 1)


def _has_password(url: str) -> bool:
    """Return whether the user's netrc file has an entry for a host, as ``wandb login`` writes it."""
    with suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc().authenticators(urlsplit(url).hostname or "") is not None
    return False


class MlflowTracker:
    """MLflow, at ``MLFLOW_TRACKING_URI``."""

    def __init__(self) -> None:
        self.mlflow = optional("mlflow", "report_to=mlflow")
        self.client: Any = None
        self.run_id = ""

    def start(self, run: TrackedRun) -> None:
        """Continue the run of this name, or create it with its parameters."""
        self.client = self.mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(name)
        experiment = self.client.create_experiment(name) if found is None else found.experiment_id
        runs = self.client.search_runs([experiment], f"attributes.run_name = '{run.name}'", max_results=1)
        if runs:
            self.run_id = runs[0].info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
            return
        self.run_id = self.client.create_run(experiment, run_name=run.name).info.run_id
        entities = self.mlflow.entities
        parameters = [entities.Param(_allowed(key), str(value)[:6000]) for key, value in run.parameters.items()]
        for first in range(0, len(parameters), 100):  # MLflow's limit
            self.client.log_batch(self.run_id, params=parameters[first : first + 100])

    def log(self, metrics: Row, step: int) -> None:
        """Log the numbers under their own names, as TRL's runs have them in MLflow."""
        now, entities = int(time.time() * 1000), self.mlflow.entities
        values = [entities.Metric(_allowed(name), value, now, step) for name, value in numbers(metrics).items()]
        self.client.log_batch(self.run_id, metrics=values)

    def table(self, rows: Sequence[Row], step: int) -> None:
        """Log the completions as a table, one artifact a generation."""
        columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
        self.client.log_table(self.run_id, columns, artifact_file=f"completions/completions_{step:05d}.json")

    def finish(self, complete: bool) -> None:
        """Set the run's status."""
        if self.run_id:
            self.client.set_terminated(self.run_id, status="FINISHED" if complete else "KILLED")


def _allowed(name: str) -> str:
    """Replace the characters that MLflow does not allow in names."""
    return re.sub(r"[^0-9A-Za-z_\-. :/]", "_", name)


class FunctionTracker:
    """A user's function, called with a copy of every line of metrics."""

    def __init__(self, function: Callable[[dict[str, Any]], object]) -> None:
        self.function = function

    def start(self, run: TrackedRun) -> None:
        """Do nothing."""

    def log(self, metrics: Row, step: int) -> None:
        """Call the function."""
        self.function(dict(metrics))

    def table(self, rows: Sequence[Row], step: int) -> None:
        """Do nothing."""

    def finish(self, complete: bool) -> None:
        """Do nothing."""


def tracked_name(root: Path, suffix: str) -> str:
    """Return a name that every tracker takes, as a run's name and as its id."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', root.name)[:80]}-{suffix}"
