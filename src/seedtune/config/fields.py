"""Every setting with its type, its bounds and its default, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from seedtune.config.data_and_rewards import OBJECTS, DatasetSettings, RewardSettings
from seedtune.config.sections import (
    ConversationSettings,
    LikelihoodSettings,
    LookAheadSettings,
    RaySettings,
    ScheduleSettings,
    Section,
    ToySettings,
    TransformersSettings,
    VllmSettings,
)
from seedtune.errors import ConfigError

GROUP = 8
"""Members of a job of Ray workers by default: the same for any number of workers, so that rewards are."""


def one_spelling(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with ``learning_rate`` under its other name, ``alpha``; ConfigError if both are given and differ."""
    if "learning_rate" not in settings:
        return dict(settings)
    result = dict(settings)
    rate, alpha = result.pop("learning_rate"), result.get("alpha")
    if None not in (rate, alpha) and rate != alpha:
        raise ConfigError(
            f"alpha={alpha} and learning_rate={rate} are two names of one setting, and differ: give one of them"
        )
    return {**result, "alpha": alpha if rate is None else rate}


class Fields(Section):
    """The fields of a `Config`, one by one."""

    model: str = "smollm2-135m"
    """Hugging Face id, local folder, or a built-in name (``smollm2-135m``)."""

    task: str = "conciseness"
    """Built-in task (``seedtune tasks``), ``reasoning_gym:NAME``, or ``file.py:function`` that returns a task;
    ``custom`` with data and rewards of your own (then it need not be given)."""

    task_args: dict[str, Any] = Field(default_factory=dict)
    """Settings of the task, such as ``numbers: 4`` of ``countdown``; ``docs/tasks.md`` lists them."""

    train_dataset: DatasetSettings | None = None
    """Data of your own: a file, a Hugging Face id, or a mapping with ``path``, ``name``, ``split``."""

    eval_dataset: DatasetSettings | None = None
    """Held-out data; without, ``eval_size`` of the training rows are held out."""

    eval_size: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the rows of your own data that are held out where there is no ``eval_dataset``: rounded down, 128 rows
    at the most, the same ones whatever the seed; 0: none.  A share, as ``test_size`` of ``train_test_split``."""

    prompt_column: str = "prompt"
    """The column of your own data that holds the prompts: text, or lists of chat messages."""

    reward_funcs: tuple[RewardSettings, ...] = ()
    """Rewards of your own: ``file.py:function``, ``module.function``, or mappings (docs: rewards and data)."""

    reward_weights: tuple[float, ...] | None = None
    """A factor for each of ``reward_funcs``; all 1 by default."""

    environment: str | None = None
    """What members talk to for several turns: ``number_guessing``, ``file.py:Class`` or ``module.Class``."""

    conversation: ConversationSettings = ConversationSettings()
    """Limits of such conversations."""

    engine: Literal["transformers", "vllm", "toy", "ray"] = "transformers"
    """What evaluates the population; ``ray``: workers on Ray, each with one of the others (section ``ray``)."""

    output_dir: str = "runs/run"
    """The run directory: ledger, metrics, samples, snapshots, report."""

    seed: int = Field(default=0, ge=0, lt=2**64)
    """Run seed: addresses all noise, the order of prompts and sampling draws."""

    generations: int = Field(default=100, ge=1)
    """Generations of the whole run; a finished run may be resumed with more."""

    population: int = Field(default=32, ge=2)
    """Members per generation, N."""

    sigma: float = Field(default=0.001, gt=0.0)
    """Standard deviation of each weight's perturbation, σ."""

    alpha: float | None = Field(default=None, gt=0.0)
    """Step size α of θ ← θ + (α/N) Σ zᵢ εᵢ, 1/σ absorbed.  Left out, it is found while training (see ``step_size``).
    ``learning_rate`` is accepted as another spelling of it."""

    step_size: Literal["auto", "adaptive", "fixed"] = "auto"
    """``adaptive``: α follows what every generation measures, starting from ``alpha`` if given; ``fixed``: ``alpha``
    as it is (σ/2 if left out, the paper's ratio).  ``auto``: fixed if ``alpha`` is given, adaptive if not."""

    max_step_ratio: float | None = Field(default=None, gt=0.0, le=4.0)
    """An adaptive step moves the weights at most so far, in lengths of a member's perturbation; 1.25 if left out."""

    rollback_on_collapse: Literal["auto", "yes", "no"] = "auto"
    """Go back to an earlier generation, and on with smaller steps, when rewards collapse.  ``auto``: with adaptive
    steps."""

    noise_reuse: int = Field(default=1, ge=1)
    """Generations that share their noise, with fresh prompts (EGGROLL uses 4)."""

    anchor_l2: float = Field(default=0.0, ge=0.0)
    """λ₂ of the pull to the base model after every update, θ ← θ₀ + (1 − αλ₂)(θ − θ₀) (arXiv 2605.30148: about 10);
    with adaptive steps, whose α differs from generation to generation, σ/2 takes its place here."""

    anchor_l1: float = Field(default=0.0, ge=0.0)
    """λ₁ of θ ← θ₀ + sign(d)·max(|d| − αλ₁, 0), d = θ − θ₀ (about 0.01)."""

    lookahead: LookAheadSettings = LookAheadSettings()
    """Sharpness-aware look-ahead."""

    sigma_schedule: ScheduleSettings = ScheduleSettings()
    """How σ changes over the run; α does not follow it."""

    alpha_schedule: ScheduleSettings = ScheduleSettings()
    """How α changes over the run."""

    antithetic: bool = True
    """Evaluate +ε and −ε of every noise sample (the population must then be even)."""

    perturbation: Literal["lowrank", "gaussian"] = "lowrank"
    """``lowrank``: A·Bᵀ/√r for every linear weight, the population in one batch; ``gaussian``: i.i.d. noise for
    every element of every tensor, members one after the other (the paper's method)."""

    rank: int = Field(default=1, ge=1, le=64)
    """Rank r of a low-rank perturbation."""

    subspaces: int = Field(default=1, ge=1)
    """Disjoint parts K that each generation deals the weights out to; a pair perturbs one of them, with σ√K (CoPES)."""

    weights_dtype: Literal["float32", "model"] = "float32"
    """Precision of the current weights: ``float32``, or ``model``: the model's own, with stochastic rounding, at no
    memory beyond the model's."""

    trainable: tuple[str, ...] = ("*",)
    """Patterns of Hugging Face tensor names that train."""

    freeze: tuple[str, ...] = ()
    """Patterns of tensor names that do not, such as ``*.embed_tokens.*``."""

    shaping: Literal["zscore", "per_prompt", "centered_rank", "none"] = "zscore"
    """``zscore``: (R − mean)/std over the population; ``per_prompt``: centered per prompt, global std;
    ``centered_rank``: ranks from −½ to ½ (standard deviation 0.29, so give α about 3.5 times more); ``none``: R."""

    shaping_clip: float | None = Field(default=None, gt=0.0)
    """Bound utilities (shaped rewards), |z| ≤ this; None: no bound."""

    objective: Literal["mean", "pass_at_k", "majority_at_k", "logprob", "choice_accuracy"] = "mean"
    """A member's reward for a prompt, of its samples': their mean, the best (``pass_at_k``), or that of the most
    frequent answer (``majority_at_k``; the task says what of a completion is its answer).  Held-out rewards are
    means.  Without generation: the mean log-probability of a reference answer's tokens (``logprob``), or whether the
    right one of several has the highest (``choice_accuracy``)."""

    likelihood: LikelihoodSettings = LikelihoodSettings()
    """Where the reference answers are."""

    samples_per_prompt: int = Field(default=1, ge=1)
    """Completions, k, that a member gives to every prompt; more than one needs a temperature."""

    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """Several rewards: shape their weighted sum, or shape each by itself and add the weighted utilities."""

    reward_batch: Literal["sample", "prompt", "all"] = "sample"
    """What a call of a reward function holds: one completion, all of a prompt's in a generation (functions that compare
    them), or all of a generation's."""

    reward_workers: int = Field(default=8, ge=0, le=256)
    """Processes that reward functions are called in, at the most, while the model goes on generating; they start as
    they are needed.  0: they run in this process, where a crash would end the run."""

    reward_timeout: float = Field(default=60.0, gt=0.0)
    """Seconds that a call of a reward function may take; what takes longer is not scored."""

    reward_memory_mb: int = Field(default=2048, ge=0)
    """Memory of each reward process in MiB (Linux); 0: no limit."""

    max_reward_failure_rate: float = Field(default=0.5, ge=0.0, le=1.0)
    """Training stops when a reward function fails on more than this share of a generation's completions."""

    prompts_per_generation: int = Field(default=8, ge=1)
    """Training prompts every member answers in a generation (all of them if there are fewer)."""

    evaluate_unperturbed: bool = True
    """Let the current model answer each generation's prompts too, as one more member outside the population.  Without
    it adaptive steps measure no curvature, and take it for what it is on average."""

    members_per_job: int = Field(default=0, ge=0)
    """Members batched together; 0 is the whole population, and 8 with ``engine: ray``.  Part of a run's identity,
    unlike the workers."""

    system_prompt: str | None = None
    """Put before every chat prompt of the task."""

    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Passed to the chat template, for example ``enable_thinking: false``."""

    max_prompt_length: int | None = Field(default=None, ge=1)
    """Tokens of a prompt at the most; by default what the model's context leaves beside a completion."""

    prompt_truncation: Literal["error", "left", "drop"] = "error"
    """What becomes of longer prompts, before training: an ``error``; they lose their beginning (``left``, in whole
    characters: rewards and samples hold what the model reads); or ``drop``: their rows are left out."""

    max_completion_length: int = Field(default=256, ge=1)
    """New tokens of a completion at the most."""

    temperature: float = Field(default=0.0, ge=0.0)
    """0 decodes greedily; above, every member samples with the same draws."""

    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Nucleus sampling: keep the most probable tokens of this total mass."""

    stop: tuple[str, ...] = ()
    """Strings that end a completion."""

    fingerprint_steps: int = Field(default=10, ge=1)
    """Every this many generations the weights' fingerprint goes into the ledger."""

    eval_steps: int = Field(default=0, ge=0)
    """Evaluate the held-out split every this many generations; 0: only before and after training."""

    eval_prompts: int = Field(default=0, ge=0)
    """Held-out prompts used; 0 is all of them."""

    eval_tasks: tuple[str, ...] = ()
    """Further built-in tasks whose held-out splits are evaluated whenever the run's own is, to watch forgetting."""

    drift_steps: int = Field(default=10, ge=0)
    """Measure how far the current weights are from the base model every this many generations; 0: never."""

    kl_steps: int = Field(default=0, ge=0)
    """Measure the divergence from the base model every this many generations; 0: never."""

    kl_prompts: int = Field(default=8, ge=1)
    """Held-out prompts (or training prompts, if there are none) for it."""

    logging_steps: int = Field(default=1, ge=1)
    """Show progress every this many generations (metrics are always written)."""

    save_steps: int = Field(default=25, ge=0)
    """Snapshot the current weights every this many generations, for a quick resume; 0: only at the end."""

    save_total_limit: int = Field(default=2, ge=1)
    """Snapshots kept."""

    transformers: TransformersSettings = TransformersSettings()
    """Settings of the transformers engine."""

    vllm: VllmSettings = VllmSettings()
    """Settings of the engine on vLLM."""

    toy: ToySettings = ToySettings()
    """Settings of the toy engine."""

    ray: RaySettings = RaySettings()
    """Settings of the Ray workers."""

    @property
    def adaptive(self) -> bool:
        """Whether α is found while training."""
        return self.step_size == "adaptive" or (self.step_size == "auto" and self.alpha is None)

    @property
    def guarded(self) -> bool:
        """Whether a collapse is gone back on."""
        return self.rollback_on_collapse == "yes" or (self.rollback_on_collapse == "auto" and self.adaptive)

    @property
    def has_objects(self) -> bool:
        """Whether data, rewards or environment are Python objects: only the program that has them can resume a run."""
        told = (self.train_dataset, self.eval_dataset, *self.reward_funcs)
        return self.environment == OBJECTS or any(one is not None and one.path == OBJECTS for one in told)

    @property
    def step(self) -> float:
        """A fixed α: σ/2 where none was given."""
        return self.sigma / 2 if self.alpha is None else self.alpha

    def step_words(self) -> str:
        """What α is, for people."""
        if self.adaptive:
            return "adaptive" if self.alpha is None else f"adaptive from {self.alpha:g}"
        return f"{self.step:g}"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The engines that evaluate, by name: one, or several of mixed Ray workers."""
        return tuple(self.ray.kinds) if self.engine == "ray" else (self.engine,)

    @property
    def group(self) -> int:
        """Members of a job; 0: all."""
        return self.members_per_job or (GROUP if self.engine == "ray" else 0)

    @property
    def held_out_group(self) -> int:
        """Held-out prompts of a job; 0: all."""
        return self.ray.prompts_per_job if self.engine == "ray" else 0

    @property
    def max_staleness(self) -> int:
        """How many generations old a result may be that an update takes."""
        return self.ray.max_staleness if self.engine == "ray" else 0

    @property
    def uses_likelihood(self) -> bool:
        """Whether scores are log-probabilities of reference answers: nothing is generated."""
        return self.objective in ("logprob", "choice_accuracy")
