"""Typer commands.  Each imports its dependencies when it runs, so that ``--help`` is fast."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seedtune.cli.ray import ray_app

if TYPE_CHECKING:
    from seedtune.trainer import Trainer

app = typer.Typer(
    name="seedtune",
    help="Fine-tune language models with evolution strategies: no gradients, inference memory, any reward."
    "\n\nStart with:  seedtune train examples/right-and-brief.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(ray_app, name="ray")

Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting, e.g. --set sigma=0.006 --set transformers.dtype=float32",
    ),
]
LocalSets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting that the weights do not depend on, e.g. --set transformers.device=cpu --set engine=vllm",
    ),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


def _version(show: bool) -> None:
    if show:
        from seedtune.types import __version__

        typer.echo(f"seedtune {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG.yaml]", help="Settings; see examples/.")] = None,
    model: Annotated[str | None, typer.Option(help="Hugging Face id, folder or built-in name.")] = None,
    train_dataset: Annotated[
        str | None,
        typer.Option(metavar="FILE|ID", help="Your data: .jsonl, .json, .csv, .parquet, or a Hugging Face id."),
    ] = None,
    eval_dataset: Annotated[
        str | None, typer.Option(metavar="FILE|ID", help="Held-out data; a part of the training data by default.")
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE.py:FUNCTION", help="Your reward, or module.function, or {path: …, adapter: …}; repeatable."
        ),
    ] = None,
    sets: Sets = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the plan, train nothing.")] = False,
) -> None:
    """Fine-tune a model.

    The run directory (output_dir) then holds the ledger, metrics.jsonl, samples.jsonl, snapshots and
    report.html.
    A run that was stopped, killed or crashed goes on with: seedtune resume RUN

    Without a file of settings:
    seedtune train --model smollm2-135m --train-dataset data.jsonl --reward rewards.py:my_reward --set generations=20
    """
    from seedtune.cli.options import train_config
    from seedtune.cli.warming import compile_beside
    from seedtune.trainer import Trainer

    given = {"model": model, "train_dataset": train_dataset, "eval_dataset": eval_dataset}
    settings = train_config(config, given, reward or (), sets or ())
    compile_beside(settings)
    trainer = Trainer(settings)
    if dry_run:
        _dry_run(trainer)
        return
    _run(trainer, resume=False)


@app.command()
def resume(
    run: RunFolder,
    generations: Annotated[int | None, typer.Option(help="Train to this many generations in all.")] = None,
    sets: Sets = None,
) -> None:
    """Go on with a run after the last complete generation, bit for bit as if it had never stopped."""
    from seedtune.cli.warming import compile_beside
    from seedtune.config.config import Config
    from seedtune.config.yaml_file import override
    from seedtune.run import recorded_config
    from seedtune.trainer import Trainer

    config = recorded_config.run_config(run)
    config = Config.create(override(config.model_dump(), sets or ()))
    if generations is not None:
        config = config.replace(generations=generations)
    compile_beside(config)
    _run(Trainer(config), resume=True)


@app.command(name="eval")
def evaluate(
    what: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help="A run directory, model folder, id or built-in name.")
    ],
    task: Annotated[list[str] | None, typer.Option(help="Task, repeatable; a run's own by default.")] = None,
    generation: Annotated[int | None, typer.Option(help="The run's model after this many generations.")] = None,
    samples: Annotated[int | None, typer.Option(help="Sample so many answers of every prompt, too.")] = None,
    k: Annotated[str | None, typer.Option("--k", metavar="K,K,…", help="pass@k and maj@k for these k.")] = None,
    temperature: Annotated[float, typer.Option(help="Of the samples; other answers are greedy.")] = 0.7,
    limit: Annotated[int | None, typer.Option(help="Held-out prompts; all by default.")] = None,
    kl: Annotated[bool, typer.Option("--kl", help="Measure the divergence of a run from its base model.")] = False,
    baseline: Annotated[
        str | None, typer.Option(metavar="base|G", help="Compare a run with its base model, or with a generation.")
    ] = None,
    prompt_baseline: Annotated[
        bool, typer.Option("--prompt-baseline", help="Add the base model with its best prompt and with majority votes.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the samples and the intervals.")] = 0,
    config: Annotated[
        Path | None, typer.Option(help="How a model is asked: a settings file, for example RUN/config.yaml.")
    ] = None,
    to_json: Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write the result as JSON.")] = None,
    save: Annotated[bool, typer.Option("--save", help="Add the result to the run and its report.")] = False,
    sets: Sets = None,
) -> None:
    """Accuracy, reward and length of greedy answers on held-out prompts, with intervals; pass@k and maj@k of samples.

    A model is loaded once for all tasks.  Nothing is written unless --json or --save says so.
    """
    from seedtune.cli.eval_and_samples import Options, eval_config_of, evaluate_command

    how = {"temperature": temperature, "limit": limit, "kl": kl, "prompt_baseline": prompt_baseline, "seed": seed}
    eval_config = eval_config_of(samples, k, baseline, **how)
    evaluate_command(what, eval_config, Options(tuple(task or ()), generation, config, to_json, save), sets or [])


@app.command()
def export(
    run: RunFolder,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write, new or empty.")],
    generation: Annotated[
        int | None, typer.Option(help="The model after this many generations; all by default.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; the base model's by default.")
    ] = None,
    sets: LocalSets = None,
) -> None:
    """Write the fine-tuned model as a Hugging Face folder, for transformers, vLLM and all that read it.

    It is rebuilt from the ledger and the newest snapshot that is not past the generation asked for.
    """
    from seedtune.cli.commands import export_command

    export_command(run, (output, dtype), generation, sets or [])


@app.command()
def verify(
    run: RunFolder,
    model: Annotated[str | None, typer.Option(help="Where the base model is, if not where the run had it.")] = None,
    snapshots: Annotated[bool, typer.Option("--snapshots", help="Check the run's snapshots, too.")] = False,
    sets: LocalSets = None,
) -> None:
    """Prove that base model + ledger = weights.

    Checks every line of the ledger, recomputes the coefficients from the recorded rewards, replays all
    generations from the base model alone, and compares every fingerprint that the run recorded.  Rewards
    themselves are not measured again.

    Exit code 0: all match.  1: the first place where they part, and what may have caused it.
    """
    from seedtune.cli.ledger_tools import verify_command

    verify_command(run, model, snapshots, sets or [])


@app.command()
def diff(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run directory.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another one.")],
) -> None:
    """Say where two runs part, and why.

    Compares what they start from (base model, settings, data) and then generation by generation what was
    asked, answered and made of it, causes before effects.  No model is loaded.

    Exit code 0: equal.  1: different, or one goes on where the other ends.
    """
    from seedtune.cli.ledger_tools import diff_command

    diff_command(run_a, run_b)


@app.command()
def pack(
    run: RunFolder,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, for example my-model.pack.")],
    generation: Annotated[
        int | None, typer.Option(help="The model after this many generations; all by default.")
    ] = None,
    licence: Annotated[str | None, typer.Option("--licence", "--license", help="Licence of the fine-tune.")] = None,
    base_licence: Annotated[
        str | None, typer.Option(help="Licence of the base model; by default what its own card states.")
    ] = None,
    note: Annotated[str | None, typer.Option(help="Attribution, or anything a reader should know.")] = None,
    sets: LocalSets = None,
) -> None:
    """Write a fine-tune as one small file: kilobytes, whatever the size of the model.

    It holds the base model's fingerprint, the seeds and the coefficients; no rewards, prompts or answers.
    With the base model, it gives the same weights, bit for bit: seedtune unpack BASE FILE -o DIR

    The first line of the file is JSON that says what it is: head -n 1 FILE
    """
    from seedtune.cli.ledger_tools import pack_command

    pack_command((run, output), generation, (licence, base_licence, note), sets or [])


@app.command()
def unpack(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The base model: folder, id or built-in name.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What 'seedtune pack' wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write, new or empty.")],
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; the base model's by default.")
    ] = None,
    sets: LocalSets = None,
) -> None:
    """Rebuild a packed fine-tune from its base model, as a Hugging Face folder.

    The tensors are those of 'seedtune export' where it was trained, bit for bit.  A truncated or edited file,
    one of a newer format, another base model, or weights that come out otherwise are refused, and nothing is
    written.
    """
    from seedtune.cli.ledger_tools import unpack_command

    unpack_command(base, (file, output), dtype, sets or [])


@app.command()
def probe(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Settings of the run to come.")],
    sigmas: Annotated[
        str | None, typer.Option(metavar="S,S,…", help="Evaluate exactly these; chosen from the configured one if not.")
    ] = None,
    members: Annotated[int, typer.Option(help="Members at each sigma, in pairs.")] = 16,
    prompts: Annotated[int | None, typer.Option(help="Training prompts; those of a generation by default.")] = None,
    sets: Sets = None,
) -> None:
    """Choose sigma and alpha before training, at 5 % of the cost of a sweep.

    A small population answers the same prompts at several sigma.  Shown are rewards, how far directions that
    help on some prompts help on others, sample answers, and what the model says when sigma is too large.
    Nothing is written.
    """
    from seedtune.cli.probe_and_plan import probe_command

    probe_command(config, sigmas, (members, prompts), sets or [])


@app.command()
def plan(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Settings of the run to come.")],
    devices: Annotated[
        str, typer.Option(metavar="D,D,…", help="cpu (this machine, measured), h100, 8xa100, rtx4090, …")
    ] = "cpu",
    measured: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Take this machine's pace from a run instead of measuring.")
    ] = None,
    share: Annotated[
        float | None, typer.Option(help="Mean length of a completion as a share of max_completion_length.")
    ] = None,
    sets: Sets = None,
) -> None:
    """What a run will take: rollouts, tokens, memory of each mode, and seconds a generation.

    For accelerators the time follows from datasheet figures and an assumed efficiency, by the formula shown.
    A model's configuration is enough; only for 'cpu' the model is loaded and writes a few tokens.
    """
    from seedtune.cli.probe_and_plan import plan_command

    plan_command(config, devices, (measured, share), sets or [])


@app.command()
def samples(
    run: RunFolder,
    limit: Annotated[int, typer.Option(help="Prompts to show; 0 shows all.")] = 12,
) -> None:
    """Held-out answers before and after training, side by side."""
    from seedtune.cli.commands import samples_command

    samples_command(run, limit)


@app.command()
def inspect(
    run: RunFolder,
    limit: Annotated[int, typer.Option(help="Answers to show; 0 shows all.")] = 12,
) -> None:
    """Recorded answers that look as if the reward had been gamed, most suspicious first, and why."""
    from seedtune.cli.eval_and_samples import inspect_command

    inspect_command(run, limit)


@app.command()
def tasks() -> None:
    """List the built-in tasks: what they ask, their rewards, how many examples, and what to install."""
    from seedtune.cli.tasks import tasks_command

    tasks_command()


@app.command()
def validate(
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="Built-in task, reasoning_gym:NAME, file.py:function or CONFIG.yaml.")
    ],
    items: Annotated[int, typer.Option(min=1, help="Examples to score, held-out ones first.")] = 400,
    gold: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of gold answers; the task's own, 'gold' or 'answer'.")
    ] = None,
    sets: Sets = None,
) -> None:
    """Check a task's rewards before training on them.

    Gold answers must get full marks, empty ones none, and answers that are wrong on purpose less than gold.

    Exit code 0: so it is.  1: the table says what is broken.
    """
    from seedtune.cli.tasks import validate_command

    validate_command(task, items, gold, sets or [])


def _dry_run(trainer: Trainer) -> None:
    from seedtune.cli.commands import dry_run

    dry_run(trainer)


def _run(trainer: Trainer, *, resume: bool) -> None:
    """Train with progress output; an interrupt prints how to resume."""
    from seedtune.cli.commands import run_training

    run_training(trainer, resume=resume)
