"""All settings with types, bounds and defaults, and the properties derived from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from seedtune.config.data_and_rewards import OBJECTS, OWN_TASK, DatasetSettings, RewardSettings
from seedtune.config.paths import FileAndName, LocalPath, ModelPath
from seedtune.config.sections import (
    DAY,
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
from seedtune.types import COUNT, STEPS

TRACKERS = ("trackio", "tensorboard", "wandb", "mlflow")
"""Names in ``report_to``."""

GROUP, HELD_OUT_GROUP = 8, 32
"""Default members per job of Ray workers: independent of the number of workers, so that rewards are, too."""


def one_spelling(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Rename ``learning_rate`` to ``alpha`` in ``settings``; raise ConfigError if both are given and differ."""
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
    """The fields of a `Config`."""

    model: ModelPath = "smollm2-135m"
    """Hugging Face id (``org/name``, or ``org/name@revision`` for a branch, tag or commit), local folder, or a built-in
    name (``smollm2-135m``)."""

    task: FileAndName = OWN_TASK
    """Built-in task (``seedtune tasks``), ``reasoning_gym:NAME``, or ``file.py:function`` that returns a task;
    ``custom``: your own data and rewards."""

    task_args: dict[str, Any] = Field(default_factory=dict)
    """Settings of the task, such as ``numbers: 4`` of ``countdown``; ``docs/tasks.md`` lists them."""

    train_dataset: DatasetSettings | None = None
    """Your own training data: a file, a Hugging Face id, or a mapping with ``path``, ``name``, ``split``."""

    eval_dataset: DatasetSettings | dict[str, DatasetSettings] | None = None
    """Held-out data, or several sets by name, each also measured by itself as ``eval_NAME/…``; by default a share
    ``eval_size`` of the training rows."""

    eval_size: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of your own rows that is held out without an ``eval_dataset``, like ``test_size`` of ``train_test_split``:
    rounded down, at most 128 rows, the same rows for every seed; 0: none."""

    prompt_column: str = "prompt"
    """Column of your own data with the prompts: text, or lists of chat messages."""

    reward_funcs: tuple[RewardSettings, ...] = ()
    """Your own rewards: ``file.py:function``, ``module.function``, or mappings (docs: rewards and data)."""

    reward_weights: tuple[Annotated[float, Field(ge=-1e9, le=1e9)], ...] | None = None
    """One factor per reward in ``reward_funcs``; by default 1 each."""

    environment: str | dict[str, str] | None = None
    """Environment of multi-turn conversations: ``number_guessing``, ``file.py:Class`` or ``module.Class``; or a mapping
    of names to several, of which the column ``environment`` of a row names its own."""

    conversation: ConversationSettings = ConversationSettings()
    """Limits of these conversations."""

    engine: Literal["transformers", "vllm", "toy", "ray"] = "transformers"
    """Engine that evaluates the population; ``ray``: Ray workers with one of the other engines (section ``ray``)."""

    output_dir: LocalPath = Field(default="runs/run", validate_default=True)
    """Run directory, with ledger, metrics, samples, snapshots and report."""

    seed: int = Field(default=0, ge=0, lt=2**64)
    """Run seed: addresses all noise, the order of prompts, and sampling draws."""

    generations: int = Field(default=100, ge=1, le=STEPS)
    """Generations of the run; a finished run may be resumed with more."""

    population: int = Field(default=32, ge=2, le=COUNT)
    """Members per generation, N."""

    sigma: float | None = Field(default=None, gt=0.0, le=1e3)
    """Standard deviation of each weight's perturbation, σ.  By default (``auto``) it is measured at the start of the
    run, with the model and training prompts (see ``docs/concepts/strategies.md``)."""

    alpha: float | None = Field(default=None, gt=0.0, le=1e6)
    """Step size α of θ ← θ + (α/N) Σ zᵢ εᵢ, with 1/σ absorbed.  By default (``auto``) steps are as long as the
    agreement between prompts allows.  ``learning_rate`` is accepted as an alias."""

    rollback_on_fall: Literal["auto", "yes", "no"] = "auto"
    """Watch the rewards of a few held-out prompts (training prompts if there are none) during training; when they have
    fallen, return to the best generation, with half the step.  ``auto``: unless ``alpha`` is given."""

    noise_reuse: int = Field(default=1, ge=1, le=STEPS)
    """Consecutive generations that share their noise, with fresh prompts (EGGROLL uses 4)."""

    anchor_l2: float = Field(default=0.0, ge=0.0, le=1e9)
    """λ₂ of the pull to the base model after every update, θ ← θ₀ + (1 − αλ₂)(θ − θ₀) (arXiv 2605.30148: about 10);
    without a given α, σ/2 is used here instead."""

    anchor_l1: float = Field(default=0.0, ge=0.0, le=1e9)
    """λ₁ of θ ← θ₀ + sign(d)·max(|d| − αλ₁, 0), where d = θ − θ₀ (about 0.01)."""

    lookahead: LookAheadSettings = LookAheadSettings()
    """Sharpness-aware look-ahead."""

    sigma_schedule: ScheduleSettings = ScheduleSettings()
    """Schedule of σ over the run; α does not follow it."""

    alpha_schedule: ScheduleSettings = ScheduleSettings()
    """Schedule of α over the run."""

    antithetic: bool = True
    """Evaluate +ε and −ε of every noise sample (requires an even population)."""

    perturbation: Literal["lowrank", "flipout", "gaussian"] = "lowrank"
    """``lowrank``: A·Bᵀ/√r for every linear weight, with the population in one batch; ``flipout``: U ⊙ r·sᵀ, of full
    rank, with the population in one batch at about twice the products; ``gaussian``: i.i.d. noise for every element of
    every tensor, with members one after the other (the paper's method)."""

    rank: int = Field(default=1, ge=1, le=64)
    """Rank r of a low-rank perturbation."""

    shared_noise: int = Field(default=1, ge=1, le=1024)
    """Number of different U in a generation, of ``flipout``: pair p has U number p mod this."""

    subspaces: int = Field(default=1, ge=1, le=1024)
    """Number K of disjoint parts that each generation splits the weights into; a pair perturbs one, by σ√K (CoPES)."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the forward pass; ``auto``: the checkpoint's own (compare ``weights_dtype``)."""

    weights_dtype: Literal["float32", "model"] = "float32"
    """Precision of the current weights: ``float32``, or ``model``: the model's dtype with stochastic rounding, which
    takes no extra memory."""

    trainable: tuple[str, ...] = ("*",)
    """Patterns of the Hugging Face tensor names to train; those with a ``!`` are not trained: ``!*.embed_tokens.*``."""

    shaping: Literal["zscore", "per_prompt", "centered_rank", "none"] = "zscore"
    """``zscore``: (R − mean)/std over the population; ``per_prompt``: centered per prompt, global std;
    ``centered_rank``: ranks from −½ to ½ (standard deviation 0.29, so give α about 3.5 times more); ``none``: R, or
    R − mean without pairs."""

    objective: Literal["mean", "pass_at_k", "majority_at_k", "logprob", "choice_accuracy"] = "mean"
    """How a member's samples give its reward for a prompt: their mean, the best (``pass_at_k``), or the mean of the
    most frequent answer's (``majority_at_k``; the task extracts answers).  Held-out rewards are always means.
    Without generation: the mean log-probability of a reference answer's tokens (``logprob``), or whether the right one
    of several answers has the highest (``choice_accuracy``)."""

    likelihood: LikelihoodSettings = LikelihoodSettings()
    """Columns of the reference answers."""

    samples_per_prompt: int = Field(default=1, ge=1, le=COUNT)
    """Completions per member and prompt, k; more than one requires a temperature above 0."""

    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """With several rewards: shape their weighted sum, or shape each separately and add the weighted utilities."""

    reward_batch: Literal["sample", "prompt", "all"] = "sample"
    """Completions per call of a reward function: one, all of a prompt in a generation (for functions that compare
    them), or all of a generation."""

    reward_workers: int = Field(default=8, ge=0, le=256)
    """Most processes for reward functions, which run while the model generates; processes start on demand.
    0: run them in this process, where a crash ends the run."""

    reward_timeout: float = Field(default=60.0, gt=0.0, le=DAY)
    """Time limit in seconds of a call of a reward function or an environment; the completions of a longer call are not
    scored."""

    reward_memory_mb: int = Field(default=2048, ge=0, le=2**24)
    """Memory of each reward process in MiB (Linux); 0: no limit."""

    max_reward_failure_rate: float = Field(default=0.5, ge=0.0, le=1.0)
    """Stop training if a reward function fails on more than this share of a generation's completions."""

    prompts_per_generation: int = Field(default=16, ge=1, le=COUNT)
    """Training prompts that every member answers in a generation (all if there are fewer)."""

    evaluate_unperturbed: bool = True
    """Let the current model answer each generation's prompts, too, as a member outside the population: metrics compare
    it with the members."""

    members_per_job: int = Field(default=0, ge=0, le=COUNT)
    """Members batched together; 0: the whole population, or 8 with ``engine: ray``.  Part of a run's identity, unlike
    the number of workers."""

    system_prompt: str | None = None
    """System message put before every chat prompt of the task."""

    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments passed to the chat template, for example ``enable_thinking: false``; ``continue_final_message`` is for
    prompts that end with an assistant message."""

    max_prompt_length: int | None = Field(default=None, ge=1, le=2**30)
    """Most tokens of a prompt; by default the model's context minus ``max_completion_length``."""

    prompt_truncation: Literal["error", "left", "drop"] = "error"
    """Policy for longer prompts, before training: raise an ``error``; truncate them from the ``left``, in whole
    characters (rewards and samples hold what the model reads); or ``drop`` their rows, and those that the chat template
    or the tokenizer refuses.  A run may be resumed with ``drop``."""

    max_completion_length: int = Field(default=256, ge=1, le=2**30)
    """Most new tokens of a completion."""

    temperature: float = Field(default=0.0, ge=0.0, le=1e3)
    """Sampling temperature; 0 decodes greedily.  Every member samples with the same random draws."""

    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Nucleus sampling: keep the most probable tokens with this total probability."""

    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Strings that end a completion, and are no part of it; special tokens by their text (``<|im_end|>``), too."""

    stop_token_ids: tuple[Annotated[int, Field(ge=0, le=COUNT)], ...] = ()
    """Tokens that end a completion, besides the model's own end tokens."""

    fingerprint_steps: int = Field(default=10, ge=1, le=STEPS)
    """Record the weights' fingerprint in the ledger, and measure their distance from the base model, every this many
    generations."""

    eval_steps: int = Field(default=0, ge=0, le=STEPS)
    """Evaluate the held-out split every this many generations; 0: only before and after training."""

    eval_prompts: int = Field(default=0, ge=0, le=COUNT)
    """Held-out prompts to use; 0: all."""

    eval_tasks: tuple[FileAndName, ...] = ()
    """Further built-in tasks whose held-out splits are evaluated along with the run's own, to monitor forgetting."""

    kl_steps: int = Field(default=0, ge=0, le=STEPS)
    """Measure the KL divergence from the base model every this many generations, on 8 held-out prompts (training
    prompts if there are none); 0: never."""

    logging_steps: int = Field(default=1, ge=1, le=STEPS)
    """Show progress every this many generations (metrics are always written)."""

    report_to: tuple[Any, ...] = ()
    """Experiment trackers: ``trackio``, ``tensorboard``, ``wandb``, ``mlflow``; in Python also functions, called with
    every line of metrics.  ``none``: none."""

    log_completions: bool = False
    """Write all completions of every generation to ``completions/`` as Parquet, and to trackers that have tables."""

    save_steps: int = Field(default=25, ge=0, le=STEPS)
    """Snapshot the current weights every this many generations, for fast resuming; 0: only at the end."""

    save_total_limit: int = Field(default=2, ge=1, le=COUNT)
    """Number of snapshots to keep."""

    products: Literal["auto", "fma32", "bf16dot", "library"] = "auto"
    """Matrix products of the transformers engine.  ``fma32``: float32 sums in a fixed order, equal bits on every CPU
    with FMA.  ``bf16dot``: the dot products of AVX512-BF16.  ``library``: torch's.  ``auto``: by processor; on resume
    as at the start.  A name (``library`` with the other engines) allows resuming a run elsewhere than it began."""

    trust_remote_code: bool = False
    """Run model code that comes with a checkpoint.  Enable only if you trust its author."""

    transformers: TransformersSettings = TransformersSettings()
    """Settings of the transformers engine."""

    vllm: VllmSettings = VllmSettings()
    """Settings of the vLLM engine."""

    toy: ToySettings = ToySettings()
    """Settings of the toy engine."""

    ray: RaySettings = RaySettings()
    """Settings of the Ray workers."""

    @property
    def rolls_back(self) -> bool:
        """Whether the run goes back when watched rewards have fallen."""
        automatic = self.alpha is None and not self.max_staleness
        return self.rollback_on_fall == "yes" or (self.rollback_on_fall == "auto" and automatic)

    @property
    def has_objects(self) -> bool:
        """Whether data, rewards or environment are Python objects, so that only their program can resume the run."""
        passed = (self.train_dataset, *self.eval_datasets.values(), *self.reward_funcs)
        return self.environment == OBJECTS or any(setting is not None and setting.path == OBJECTS for setting in passed)

    @property
    def eval_datasets(self) -> dict[str, DatasetSettings]:
        """The held-out sets by name; a single one has the name ``""``."""
        sets = self.eval_dataset
        return sets if isinstance(sets, dict) else {} if sets is None else {"": sets}

    @property
    def weights(self) -> tuple[float, ...]:
        """One weight per reward in ``reward_funcs``."""
        return (1.0,) * len(self.reward_funcs) if self.reward_weights is None else self.reward_weights

    def step_words(self) -> str:
        """Return a readable description of the step size."""
        return "α auto" if self.alpha is None else f"α {self.alpha:g}"

    def sigma_words(self) -> str:
        """Return a readable description of σ."""
        return "σ auto (measured at the start)" if self.sigma is None else f"σ {self.sigma:g}"

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the engines that evaluate: one, or several for mixed Ray workers."""
        return tuple(self.ray.kinds) if self.engine == "ray" else (self.engine,)

    @property
    def group(self) -> int:
        """Members per job; 0: all."""
        return self.members_per_job or (GROUP if self.engine == "ray" else 0)

    @property
    def held_out_group(self) -> int:
        """Held-out prompts per job; 0: all."""
        return HELD_OUT_GROUP if self.engine == "ray" else 0

    @property
    def max_staleness(self) -> int:
        """Largest age, in generations, of the results that an update uses; 0: a synchronous run."""
        return self.ray.max_staleness if self.engine == "ray" else 0

    def due(self, generation: int, every: int) -> bool:
        """Return whether an action is due after a generation: at multiples of ``every`` (0: never), and the last."""
        return generation == self.generations or (every > 0 and generation % every == 0)

    @property
    def uses_likelihood(self) -> bool:
        """Whether scores come from log-probabilities of reference answers, so that nothing is generated."""
        return self.objective in ("logprob", "choice_accuracy")
