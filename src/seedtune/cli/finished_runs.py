"""The commands that export, check, compare and ship finished runs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import seedtune
from seedtune.cli.console import as_json, console, say, say_json
from seedtune.cli.options import AsJson, Dtype, Generation, LocalSets, OutputFolder, RunFolder, path
from seedtune.cli.progress import ReplayProgress
from seedtune.errors import ConfigError

if TYPE_CHECKING:
    from seedtune.run.artifacts.consistency import Audit
    from seedtune.run.artifacts.diff import Difference
    from seedtune.run.artifacts.export import Export
    from seedtune.run.artifacts.verify import Verification

DTYPES = ("float32", "bfloat16", "float16")

Licence = Annotated[str | None, typer.Option("--licence", "--license", help="Licence of the fine-tune.")]
BaseLicence = Annotated[
    str | None, typer.Option(help="Licence of the base model; by default what its own card states.")
]
Note = Annotated[str | None, typer.Option(help="Attribution, or anything a reader should know.")]


def export(
    run: RunFolder,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", parser=path, help="Folder to write, new or empty; or a new file NAME.gguf."),
    ],
    generation: Generation = None,
    dtype: Dtype = None,
    like: Annotated[
        str | None, typer.Option(help="For NAME.gguf: a GGUF file of the base model; a built-in model has its own.")
    ] = None,
    sets: LocalSets = None,
) -> None:
    """Write the fine-tuned model as a Hugging Face folder, for transformers, vLLM and all that read it.

    It is rebuilt from the ledger and the newest snapshot that is not past the generation asked for.

    With -o NAME.gguf it is written for llama.cpp: tokenizer and settings are those of the GGUF file of the base
    model, the weights those of the fine-tune.  The file is read back with transformers and compared before it is there.
    """
    from seedtune.run.artifacts.export import export_gguf

    _check_dtype(dtype)
    is_gguf = output.suffix == ".gguf"
    if like is not None and not is_gguf:
        raise ConfigError(f"--like {like} is for a GGUF file, and {str(output)!r} is none. Give -o NAME.gguf.")

    def write(target: Path) -> Export:
        with ReplayProgress(console()) as progress:
            options = {"generation": generation, "dtype": dtype, "sets": sets or (), "progress": progress}
            return seedtune.export_run(run, target, **options)

    done = export_gguf(run, output, like, write) if is_gguf else write(output)
    _say_exported(done, output)


def verify(
    run: RunFolder,
    model: Annotated[str | None, typer.Option(help="Where the base model is, if not where the run had it.")] = None,
    snapshots: Annotated[bool, typer.Option("--snapshots", help="Check the run's snapshots, too.")] = False,
    to_json: AsJson = False,
    sets: LocalSets = None,
) -> None:
    """Prove that base model + ledger = weights.

    Checks every line of the ledger, recomputes the coefficients from the recorded rewards, replays all
    generations from the base model alone, and compares every fingerprint that the run recorded.  Rewards
    themselves are not measured again.

    Exit code 0: all match.  1: the first place where they part, and what may have caused it.
    """
    with ReplayProgress(console()) as progress:
        found = seedtune.verify_run(
            run, model=model, sets=sets or (), snapshots=snapshots, progress=None if to_json else progress
        )
    if to_json:
        say_json(
            {
                "run": str(run),
                "verified": True,
                "generations": found.generations,
                "fingerprint": found.fingerprint,
                "matched": found.matched,
                "coefficients": found.audit,
                "snapshots": found.snapshots,
                "seconds": found.seconds,
            }
        )
        return
    for line in _verified(found):
        say(line)


def diff(
    run_a: Annotated[Path, typer.Argument(parser=path, metavar="RUN_A", help="A run directory.")],
    run_b: Annotated[Path, typer.Argument(parser=path, metavar="RUN_B", help="Another one.")],
    to_json: AsJson = False,
) -> None:
    """Say where two runs part, and why.

    Compares what they start from (base model, settings, data) and then generation by generation what was
    asked, answered and made of it, causes before effects.  No model is loaded.

    Exit code 0: equal.  1: different, or one goes on where the other ends.
    """
    found = seedtune.diff_runs(run_a, run_b)
    if to_json:
        say_json({"runs": (str(run_a), str(run_b)), "equal": found.equal, **as_json(found)})
    else:
        for line in _compared(found, (run_a, run_b)):
            say(line)
    if not found.equal:
        raise typer.Exit(1)


def pack(
    run: RunFolder,
    output: Annotated[Path, typer.Option("--output", "-o", parser=path, help="File to write, say my-model.pack.")],
    generation: Generation = None,
    licence: Licence = None,
    base_licence: BaseLicence = None,
    note: Note = None,
    sets: LocalSets = None,
) -> None:
    """Write a fine-tune as one small file: kilobytes, whatever the size of the model.

    It holds the base model's fingerprint, the seeds and the coefficients; no rewards, prompts or answers.
    With the base model, it gives the same weights, bit for bit: seedtune apply FILE -o DIR

    The first line of the file is JSON that says what it is: head -n 1 FILE
    """
    rights = seedtune.Rights(base_licence, licence, note)
    with ReplayProgress(console()) as progress:
        done = seedtune.pack_run(run, output, generation=generation, rights=rights, sets=sets or (), progress=progress)
    about = done.about
    say(f"packed {count(about.generations, 'generation')} into {output}, {output.stat().st_size:,} bytes")
    say(f"base model {about.model}, fingerprint {about.base_fingerprint}")
    if about.base_licence is None:
        say("no licence of the base model was found: state it with --base-licence if you give the file away")
    say(f"rebuild it with: seedtune apply {shlex.quote(str(output))} -o MODEL")


def apply_pack(
    pack: Annotated[str, typer.Argument(metavar="PACK", help="USER/NAME on the hub, or a file of 'seedtune pack'.")],
    output: OutputFolder,
    model: Annotated[
        str | None, typer.Option(help="The base model: folder, id or built-in name; by default what the pack names.")
    ] = None,
    dtype: Dtype = None,
    sets: LocalSets = None,
) -> None:
    """Rebuild a packed fine-tune from its base model, as a Hugging Face folder.

    The tensors are those of 'seedtune export' where it was trained, bit for bit.  A truncated or edited file,
    one of a newer format, another base model, or weights that come out otherwise are refused, and nothing is
    written.  USER/NAME@REVISION is an earlier state of a repository.
    """
    _check_dtype(dtype)
    with ReplayProgress(console()) as progress:
        done = seedtune.apply_pack(str(path(pack)), output, base=model, dtype=dtype, sets=sets or (), progress=progress)
    _say_exported(done, output)


def push(
    run: RunFolder,
    repository: Annotated[str, typer.Argument(metavar="USER/NAME", help="The repository, new or pushed before.")],
    is_pack: Annotated[bool, typer.Option("--pack", help="Push a pack of kilobytes instead of the weights.")] = False,
    generation: Generation = None,
    dtype: Dtype = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    message: Annotated[str, typer.Option("--message", "-m", help="Message of the commit.")] = "End of training",
    licence: Licence = None,
    base_licence: BaseLicence = None,
    note: Note = None,
    sets: LocalSets = None,
) -> None:
    """Push a fine-tune to the Hugging Face hub: the model, or with --pack the few kilobytes that rebuild it.

    With it go a model card and the run's ledger: rewards, seeds, coefficients and settings, no prompts or
    answers and no paths of this machine.  Log in with 'hf auth login', or set HF_TOKEN.

    A push is one commit: whatever stops it, the repository is unchanged, and the next try sends only what the
    hub does not have.
    """
    from seedtune.run.artifacts.hub import Destination
    from seedtune.run.artifacts.push import What, push_run

    _check_dtype(dtype)
    if is_pack and dtype is not None:
        raise ConfigError(f"--dtype {dtype} is for weights, and --pack pushes none. Give it to 'seedtune apply'.")
    to = Destination(repository, private=private or None, commit_message=message)
    what = What(generation, is_pack, dtype, seedtune.Rights(base_licence, licence, note))
    with ReplayProgress(console()) as progress:
        done = push_run(run, to, what, sets=sets or (), progress=progress)
    say(f"pushed {'the pack' if is_pack else 'the model'} after generation {done.generation}, {done.bytes:,} bytes")
    say(done.url)
    if is_pack:
        say(f"rebuild it with: seedtune apply {done.repo_id} -o MODEL")
    else:
        say(f'load it with: AutoModelForCausalLM.from_pretrained("{done.repo_id}")')


def _check_dtype(dtype: str | None) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype!r} is not one of {', '.join(DTYPES)}.")


def _say_exported(done: Export, output: Path) -> None:
    """Print the result of an export, its duration, and how to load the model."""
    if done.replayed:
        say(f"replayed {done.replayed} generations in {done.seconds:.2f} s")
    say(f"wrote the model after generation {done.generation} to {output}")
    if output.suffix == ".gguf":
        say(f"chat with it: llama-cli -m {shlex.quote(str(output))}")
    else:
        say(f'load it with: AutoModelForCausalLM.from_pretrained("{output}")')


def count(number: int, what: str) -> str:
    """Format a count: ``1 generation``, ``2 generations``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _verified(found: Verification) -> list[str]:
    from seedtune.engines.recorded_arithmetic import summary

    contents, last, matched = found.contents, max(found.matched, default=0), len(found.matched)
    done = contents.generations
    torn = f"; {contents.torn} bytes of an unfinished last line are not part of the run" if contents.torn else ""
    lines = [
        f"ledger: {count(done, 'generation')}, every checksum good{torn}",
        *_audited(found.audit),
        f"base model: fingerprint {contents.header.base_fingerprint}, as recorded",
        *(
            f"rewards{f' from generation {at} on' if at else ''}: computed with {summary(entry)} (not measured again)"
            for at, entry in sorted(contents.arithmetics.items())
        ),
        f"replayed {count(done, 'generation')} from the base model in {found.seconds:.2f} s",
    ]
    if found.snapshots:
        lines.append(f"snapshots: {', '.join(map(str, found.snapshots))} hold the replayed weights")
    if last < done:
        lines.append(f"no fingerprint is recorded after generation {last}; replay ends with {found.fingerprint}")
    result = (
        f"all {count(matched, 'recorded fingerprint')} match" if matched else "no fingerprint is recorded to compare"
    )
    if done == 0:
        result = "the base model is the recorded one, and there is no generation yet"
    return [*lines, f"verified: {result}"]


def _audited(audit: Audit) -> list[str]:
    result = (
        (audit.exact, "follow from the recorded rewards, bit for bit"),
        (audit.scaled, "follow from the recorded rewards up to one factor each (scores per prompt are not recorded)"),
        (audit.unchecked, "could not be checked against rewards (members tie and scores per prompt are not recorded)"),
    )
    return [f"coefficients: those of {count(number, 'generation')} {what}" for number, what in result if number]


def _compared(found: Difference, runs: tuple[Path, Path]) -> list[str]:
    lines = [f"start: {line}" for line in found.header] + [f"note: {line}" for line in found.notes]
    if found.generation is not None:
        where = f"generation {found.generation}, after {count(found.generation, 'equal one')}"
        return [*lines, f"the runs part at {where}:", *(f"  {reason}" for reason in found.reasons)]
    lines.append(
        f"equal: {count(min(found.generations), 'generation')} and {count(found.fingerprints, 'recorded fingerprint')}"
    )
    if found.generations[0] != found.generations[1]:
        short, long = sorted(zip(found.generations, runs, strict=True))
        lines.append(f"{short[1]} ends there; {long[1]} goes on to generation {long[0]}")
    return lines
