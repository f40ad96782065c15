"""The trainer: one generation after the other, on one screen."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from seedtune import activities, strategies
from seedtune.config.config import Config
from seedtune.engines.base import Engine, EngineTimes
from seedtune.errors import RewardError, several
from seedtune.evaluation import report, watched
from seedtune.evaluation.held_out import during_training, others, right
from seedtune.rewards.failures import UNSCORED, unscored_reason
from seedtune.rewards.scorer import Completion, Scorer
from seedtune.rewards.sources.build import RewardSpec
from seedtune.rollouts import asynchronous
from seedtune.rollouts.evaluator import Evaluator, Outcome
from seedtune.rollouts.prepare import prepare
from seedtune.rollouts.prompts import drawn
from seedtune.run import diagnostics, directory, recorded_config
from seedtune.run import metrics as run_metrics
from seedtune.run.callbacks.base import TrainerControl, check_events
from seedtune.run.records import Record
from seedtune.run.reward_hacking.monitor import RewardHackingMonitor
from seedtune.run.session import Session, Start
from seedtune.run.trackers import completion_table
from seedtune.run.trackers.reporting import Reporting
from seedtune.strategies import watch
from seedtune.strategies.base import Feedback, Scores, State, Step
from seedtune.tasks.base import Task
from seedtune.tasks.environments import EnvironmentFactory
from seedtune.tasks.from_config import Data, TaskInputs
from seedtune.tasks.reference_answers import scores_itself
from seedtune.types import UNPERTURBED, Member, Plan, Rollout, length

Metrics = dict[str, Any]


class ESTrainer:
    """Fine-tunes a model by evolution strategies, with the arguments of TRL's GRPOTrainer, in its order.

    ``ESTrainer(args=config)`` runs what the configuration names.  ``reward_funcs`` (functions, ``file.py:function``,
    mappings, ids of reward models) and ``train_dataset`` (rows with a ``prompt`` and any other columns, a file, an id)
    are your own; ``eval_dataset`` may be a mapping of names to such sets.  ``environment_factory`` is a class whose
    instances members talk to for several turns, or a mapping of such classes by name; without ``reward_funcs`` it has
    its own reward.  ``tools`` are functions with type hints that the model may call, besides the environment's methods.
    ``model`` overrides ``args.model``: an id, a folder, or a loaded PreTrainedModel, which is saved in the folder
    ``output_dir`` + "-base" and not changed.  ``processing_class`` must be the model's own tokenizer, and each of
    ``reward_processing_classes`` (one per reward, None to leave it out) that of a reward model; those of functions are
    not read.

    Raises ConfigError for settings or rewards that do not fit, DataError for unusable data, ModelError for an unknown
    model, and MissingExtraError, all before anything is written to ``output_dir``.
    """

    def __init__(  # noqa: PLR0913 - TRL's parameters
        self,
        model: Any = None,
        reward_funcs: RewardSpec | Sequence[RewardSpec] | None = None,
        args: Config | None = None,
        train_dataset: Data | None = None,
        eval_dataset: Data | Mapping[str, Data] | None = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: Sequence[Any] | None = None,
        *,
        reward_weights: Sequence[float] | None = None,
        tools: Sequence[Callable[..., Any]] | None = None,
        environment_factory: EnvironmentFactory | None = None,
    ) -> None:
        inputs = TaskInputs(
            *(reward_funcs, reward_weights, train_dataset, eval_dataset, environment_factory, tools),
            reward_tokenizers=reward_processing_classes,
        )
        prepared = prepare(args or Config(), inputs, model=model, processing_class=processing_class)
        self.config, self.task = prepared.config, prepared.task
        self.others = others(self.config, self.task)
        self.callbacks = tuple(several("callbacks", callbacks or ()))
        self.session = Session(prepared)
        self.paths = self.session.paths
        self.reward_hacking = RewardHackingMonitor(self.paths.samples)
        self.scorer = Scorer(self.task.rewards, self.config)
        self.reporting = Reporting(self.config)
        self.control = TrainerControl()
        self._evaluated: set[int] = set()

    # ------------------------------------------------------------------ public

    def train(self, resume_from_checkpoint: bool | str | os.PathLike[str] | None = None) -> Metrics:
        """Run the remaining generations; return the held-out metrics of the model that `save_model` writes, or {}.

        ``resume_from_checkpoint``: True, or the run directory, continues the run in ``output_dir``.  ``callbacks`` have
        methods of `Callback`.  Raises ConfigError for a callback without any of them or for another run's directory,
        RunError for a used run directory (unless resuming) or a changed configuration.  After any error all complete
        generations are on disk.
        """
        resume = self.session.resumes(resume_from_checkpoint)
        for callback in self.callbacks:
            check_events(callback)
        self.control = TrainerControl()
        with self.session.opened(resume=resume) as start, closing(self.scorer), self.reporting:
            self.config = self.session.config
            self._evaluated = {row["generation"] for row in self._evaluations()}
            self._emit("on_start", self, start.info, self.generation)
            self.scorer.keep(
                partial(directory.append_lines, self.paths.failures), recorded_config.how_to_go_on(self.config)
            )
            self._loop(start)
        self._emit("on_end", self)
        rows = {row["generation"]: row for row in self._evaluations()}
        return rows.get(self.session.chosen) or next(reversed(rows.values()), {})

    def load(self) -> Engine:
        """Return the engine, loaded with the base model if nothing was trained or resumed yet.

        Raises ModelError or ConfigError if the model cannot be loaded or perturbed.
        """
        return self.session.load()

    def release(self) -> None:
        """Close the engine: free its memory and end its processes."""
        self.session.release()

    @property
    def engine(self) -> Engine | None:
        """The engine, if it is loaded."""
        return self.session.engine

    @property
    def generation(self) -> int:
        """Number of complete generations."""
        return self.session.generation

    def evaluate(self) -> Metrics:
        """Evaluate the current model on the held-out examples; return its metrics.

        Raises RewardError if too many rewards fail, EngineError, and the errors of `load`.
        """
        with closing(self.scorer):
            return self._held_out(self.load(), self.generation)[0]

    def save_model(
        self, output_dir: str | Path, *, dtype: str | None = None, generation: int | str | None = None
    ) -> None:
        """Write the model as a Hugging Face folder, in the checkpoint's precision or ``dtype``.

        The model is the current one, unless the run chose an earlier one as the best that it evaluated (see
        ``rollback_on_fall``), or that of ``generation``, as in `seedtune.export_run`: a number, ``last``, ``best`` or
        ``best:METRIC``.  Raises RunError if ``output_dir`` is not empty or there is no such generation, StorageError
        if it cannot be written, and the errors of `load`.
        """
        from seedtune.run.artifacts.export import check_output, provenance, write_export

        check_output(Path(output_dir))
        with self.session.at(generation) as (engine, goal):
            write_export(engine, provenance(self.config, goal, self.paths.root), Path(output_dir), dtype=dtype)

    def push_to_hub(  # noqa: PLR0913 - transformers' parameters, and ours
        self,
        repo_id: str | None = None,
        commit_message: str = "End of training",
        *,
        private: bool | None = None,
        token: str | None = None,
        pack: bool = False,
        dtype: str | None = None,
        generation: int | str | None = None,
    ) -> str:
        """Push the model that `save_model` writes to the Hugging Face hub; return the commit's URL.

        ``repo_id`` is ``user/name``, or ``name`` of the token's owner; by default the name of ``output_dir``.  With
        ``pack`` the few kilobytes that rebuild the model from its base are pushed in place of weights.  The run's
        ledger and a card go with both.  Raises HubError if there is no token or the hub refuses, RunError or
        LedgerError without a run in ``output_dir``, and the errors of `save_model`.
        """
        from seedtune.run.artifacts.hub import Destination
        from seedtune.run.artifacts.push import What, push_engine, push_run

        root = self.paths.root
        to, what = Destination(repo_id or root.name, private, commit_message, token), What(generation, pack, dtype)
        if pack:
            return push_run(root, to, what).url
        with self.session.at(generation) as (engine, goal):
            return push_engine(root, engine, to, what, goal).url

    # ---------------------------------------------------------------- the loop

    def _loop(self, start: Start) -> None:
        strategy = strategies.create(self.config, [reward.weight for reward in self.task.rewards])
        evaluator, state = Evaluator(self.load(), self.task, self.config, self.scorer), start.state
        evaluate = asynchronous.way_of(evaluator)
        self._evaluate_if_due()
        for generation in range(self.generation, self.config.generations):
            if self.control.should_training_stop:
                break
            started = time.perf_counter()
            plan = strategy.ask(state, generation)
            prompts = drawn(self.config, self.task, generation)
            with activities.doing(f"generation {generation + 1}"):
                looked = self._watched(evaluator, generation) if strategy.watches(plan) else ()
                outcome = evaluate(self._members(plan), prompts, plan)
            plan = replace(plan, members=outcome.perturbed)
            feedback = self._feedback(plan, outcome, looked)
            self._check_scored(feedback, outcome)
            step = strategy.tell(state, plan, feedback)
            self._show(plan, outcome, generation + 1)
            record = self._record(plan, outcome, feedback, step)
            start.book.append(record)
            self.session.apply(record)
            state = step.state
            self.session.note(start.book)
            times = self.load().take_times()
            measured = diagnostics.measure(evaluator, self.session.lineage, parameters=start.info.coverage.perturbed)
            self._emit_generation(outcome, record, times, measured, time.perf_counter() - started)
            self._evaluate_if_due()
            self.session.snapshot_if_due(asked=self.control.should_save or self.control.should_training_stop)
            self.control.should_save = False
        if self.config.rolls_back and self.generation and self.generation not in self.session.ends:
            self.session.end(start.book, self._chosen(evaluator, state))
        directory.write_whole(self.paths.report, report.render(self.paths).encode())

    def _members(self, plan: Plan) -> tuple[Member, ...]:
        return (*plan.members, UNPERTURBED) if self.config.evaluate_unperturbed else plan.members

    def _watched(self, evaluator: Evaluator, generation: int) -> list[float | None]:
        return watched.rewards(evaluator, self.paths, generation, evaluated=generation in self._evaluated)

    def _feedback(self, plan: Plan, outcome: Outcome, looked: Sequence[float | None]) -> Feedback:
        members = len(plan.members)
        groups = [member.generation for member in plan.members]
        return Feedback(
            outcome.scores[:members], self._unperturbed(outcome), outcome.by_reward[:, :members], looked, groups
        )

    def _unperturbed(self, outcome: Outcome) -> Scores | None:
        """Return the unperturbed model's scores of a generation, if it was evaluated."""
        return outcome.row(UNPERTURBED) if self.config.evaluate_unperturbed else None

    def _check_scored(self, feedback: Feedback, outcome: Outcome) -> None:
        """Raise RewardError if too many generations in a row had no score: a judge is down, or the model broken.

        Not for one that rewards only declined, with None, which an ``inline`` reward never does.
        """
        own = scores_itself(self.task)
        if own and self.config.rolls_back:  # the watch goes back to weights with scores
            return
        if not (own or any(outcome.failed.values()) or any(reward.inline for reward in self.task.rewards)):
            return
        earlier = self.session.lineage.records[1 - UNSCORED :]
        empty = np.isnan(feedback.rewards).all() and all(np.isnan(record.rewards).all() for record in earlier)
        if empty and len(earlier) == UNSCORED - 1:
            raise RewardError(f"{unscored_reason([reward.name for reward in self.task.rewards])} {self.scorer.advice}")

    def _record(self, plan: Plan, outcome: Outcome, feedback: Feedback, step: Step) -> Record:
        return Record(
            plan=plan,
            alpha=step.alpha,
            rewards=tuple(float(r) for r in feedback.rewards),
            coefficients=step.coefficients,
            prompts=tuple(example.id for example in outcome.examples),
            reward_unperturbed=None if feedback.unperturbed is None else run_metrics.mean(feedback.unperturbed),
            tokens={
                "prompt": sum(rollout.prompt_tokens for rollout in outcome.rollouts),
                "generated": sum(map(length, outcome.rollouts)),
            },
            state=step.state,
            agreement=step.evidence.agreement,
            watched=tuple(feedback.watched),
            decay=step.decay,
            rollback_to=step.rollback_to,
        )

    # ------------------------------------------------------------------ metrics

    def _emit_generation(
        self, outcome: Outcome, record: Record, times: EngineTimes, measured: Metrics, step_time: float
    ) -> None:
        members = len(record.plan.members)
        metrics: Metrics = {
            "generation": self.generation,
            **run_metrics.member_metrics(record.rewards),
            **run_metrics.prompt_metrics(
                outcome.scores[:members], None if outcome.asked is None else outcome.asked[:members]
            ),
            "reward_unperturbed": record.reward_unperturbed,
            **run_metrics.function_metrics(outcome.by_function, outcome.failed),
            **run_metrics.step_share_metrics(
                self.config, self.task.rewards, outcome.by_reward[:, :members], record.coefficients
            ),
            **outcome.metrics,
            **run_metrics.completion_metrics(outcome.rollouts),
            **self.reward_hacking.metrics(outcome.rollouts),
            "sigma": record.plan.sigma,
            "alpha": record.alpha,
            **outcome.staleness,
            "rollouts": len(outcome.rollouts),
            "num_tokens": times.generated_tokens + times.prompt_tokens,
            **run_metrics.time_metrics(times, outcome.seconds, step_time),
            **times.figures,
            **run_metrics.population_metrics(record, outcome.scores[:members], self._unperturbed(outcome)),
            **measured,
        }
        generated = not scores_itself(self.task)
        metrics["alarms"] = [
            *run_metrics.record_alarms(record),
            *(run_metrics.limit_alarms(metrics, self.reward_hacking.usual) if generated else ()),
            *run_metrics.failure_alarms(outcome.failed, len(outcome.rollouts)),
            *times.notes,
        ]
        directory.append_lines(self.paths.metrics, [metrics])
        self._emit_completions(outcome, record)
        self._emit("on_generation", metrics)

    def _emit_completions(self, outcome: Outcome, record: Record) -> None:
        if self.config.log_completions:
            rows = completion_table.rows_of(outcome, record.plan.generation)
            completion_table.write(self.paths.completions, rows, self.generation)
            self._emit("on_completions", self.generation, rows)

    # --------------------------------------------------------------- evaluation

    def _evaluate_if_due(self) -> None:
        """Evaluate before the first, after the last and every ``eval_steps`` generations, or if asked, once each."""
        asked = self.control.should_evaluate or self.control.should_training_stop
        due = asked or self.generation == 0 or self.config.due(self.generation, self.config.eval_steps)
        self.control.should_evaluate = False
        if not due or not self.task.test or self.generation in self._evaluated:
            return
        self._record_evaluation(self.load(), self.generation)

    def _chosen(self, evaluator: Evaluator, state: State) -> int:
        """Choose the model to hand out: by all held-out prompts, or by the watched ones if nothing is held out."""
        looks = watched.looks(self.session.lineage, state, self._watched(evaluator, self.generation))
        if not self.task.test:
            return watch.chosen(looks)
        if (best := watch.best(looks)) not in self._evaluated:
            with self.session.at(best) as (engine, _):
                self._record_evaluation(engine, best)
        return watched.best_evaluated(self.paths, self.task)

    def _record_evaluation(self, engine: Engine, generation: int) -> None:
        metrics, outcome = self._held_out(engine, generation)
        directory.append_lines(self.paths.samples, _samples(outcome, self.task, generation, "test"))
        directory.append_lines(self.paths.metrics, [metrics])
        self._evaluated.add(generation)
        self._emit("on_evaluate", metrics)

    def _held_out(self, engine: Engine, generation: int) -> tuple[Metrics, Outcome]:
        tasks = (self.task, *self.others)
        return during_training(engine, tasks, self.config, generation=generation, scorer=self.scorer)

    def _evaluations(self) -> list[Metrics]:
        """Metrics of all held-out evaluations of this run so far, in order."""
        return [row for row in directory.read_lines(self.paths.metrics) if "eval_reward" in row]

    def _show(self, plan: Plan, outcome: Outcome, generation: int) -> None:
        """Write the current model's answers to a generation's prompts, before the ledger has the generation."""
        if self.config.evaluate_unperturbed and plan.shift is None:
            directory.append_lines(self.paths.samples, _samples(outcome, self.task, generation, "train"))

    def _emit(self, event: str, *arguments: Any) -> None:
        for callback in (self.reporting, *self.callbacks):
            if callable(method := getattr(callback, event, None)):
                self.control.add(method(*arguments))


def _logged(outcome: Outcome, rollout: Rollout) -> dict[str, Any]:
    """Return the columns that reward functions logged for a completion, as a field of a sample."""
    columns = outcome.logged.get(Completion(outcome.examples[rollout.prompt].id, rollout.text))
    return {} if columns is None else {"logged": columns}


def _samples(outcome: Outcome, task: Task, generation: int, split: str) -> list[dict[str, Any]]:
    """Return the answers of the unperturbed model as rows, for ``seedtune samples`` and the report."""
    return [
        {
            "generation": generation,
            "split": split,
            "prompt_id": outcome.examples[rollout.prompt].id,
            "prompt": outcome.examples[rollout.prompt].prompt,
            "sample": rollout.sample,
            "completion": rollout.text,
            "reward": None if np.isnan(reward) else reward,
            "right": bool(right(task, [reward])[0]) if task.has_accuracy else None,
            "finish": rollout.finish,
            **_logged(outcome, rollout),
        }
        for rollout, reward in outcome.of(UNPERTURBED)
    ]
