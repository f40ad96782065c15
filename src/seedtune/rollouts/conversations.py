"""Conversations with environments: all open conversations of a population advance in one batch per turn.

In the first turn every member answers every prompt.  Then each environment receives its model's message, in a fixed
order, and the next turn continues the open conversations, each with a separate transcript (`Job.rows`).
"""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, product
from typing import Any

from seedtune.config.config import Config
from seedtune.engines.base import Engine
from seedtune.errors import RewardError
from seedtune.rewards.execution.call import Fault, awaited, fault_of
from seedtune.rewards.execution.thread import TimedThread, is_hang
from seedtune.rewards.scorer import Scorer
from seedtune.tasks import environments
from seedtune.tasks.base import Task
from seedtune.types import Example, Finish, Job, Member, Message, Prompt, Rollout, begun

TIMEOUTS = 16
"""Time-outs of environments in one evaluation that stop the run."""


@dataclass(slots=True)
class Talk:
    """The state of one conversation; ``job``, ``member``, ``prompt`` and ``sample`` are the key of its rollout."""

    job: Job
    member: int
    prompt: int
    sample: int
    begin: environments.Content
    content: environments.Content
    environment: Any = None
    tools: environments.Tools = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    read: int = 0
    finish: Finish | None = None
    broken: bool = False
    """Whether the environment failed: the conversation ends without a reward."""


class Conversations:
    """Play the jobs of one evaluation with a task's environment; a failing environment or reward loses that sample.

    ``scorer`` logs each kind of failure once per run and holds the advice for stop errors.
    """

    def __init__(self, engine: Engine, task: Task, config: Config, scorer: Scorer) -> None:
        self.engine, self.task, self.config, self.settings = engine, task, config, config.conversation
        self.failed: Counter[str] = Counter()
        """Failed conversations per reward; a failed environment counts for every reward."""
        self._scorer, self._thread = scorer, TimedThread(config.reward_timeout)
        self._timeouts, self._causes = 0, Counter[str]()

    def rollouts(self, jobs: Sequence[Job], examples: Sequence[Example]) -> list[Rollout]:
        """Return a rollout per member, prompt and sample: the transcript, all its tokens, and its scores.

        Raises RewardError if a larger share than ``max_reward_failure_rate`` fails, or `TIMEOUTS` calls hang.
        """
        with closing(self._thread):
            talks = [
                self._begin(job, member, prompt, sample, examples[prompt])
                for job in jobs
                for (member, prompt), sample in product(job.pairs, range(job.sampling.samples))
            ]
            turn, going = 0, [talk for talk in talks if talk.finish is None]
            while going and turn < self.settings.max_turns:
                for talk, rollout in zip(going, self._answers(going, turn), strict=True):
                    if rollout is None:
                        talk.broken, talk.finish = True, "stop"
                    else:
                        self._hear(talk, rollout)
                turn, going = turn + 1, [talk for talk in going if talk.finish is None]
            scores = self._scores(talks, examples, after=jobs[0].sampling.generation)
            ended = [self._end(talk, values) for talk, values in zip(talks, scores, strict=True)]
        share, most = self.config.max_reward_failure_rate, max(self.failed.values(), default=0)
        if most > share * len(talks):
            raise self._stopped(
                f"{most} of {len(talks)} conversations failed, more than max_reward_failure_rate={share:g} allows"
            )
        return ended

    # ------------------------------------------------------------------ beginning

    def _begin(self, job: Job, member: int, prompt: int, sample: int, example: Example) -> Talk:
        """Start a conversation with a new environment, reset with the columns of the row."""
        content = job.prompts[prompt].content
        talk = Talk(job, member, prompt, sample, content, content)
        opening = self._thread.call(partial(self._open, example))
        error = opening.exception()
        if error is not None:
            self._broke(talk, error)
            return talk
        talk.environment, talk.tools, observation = opening.result()
        if talk.tools and not self._templated(content):
            content = environments.introduced(content, environments.describe(talk.tools))
        talk.begin = talk.content = environments.opened(content, observation)
        return talk

    def _open(self, example: Example) -> tuple[Any, environments.Tools, str | None]:
        assert self.task.environment is not None
        environment, observation = environments.begun_with(self.task.environment, example)
        tools = environments.tools_of(environment, self.task.tools)
        return environment, tools, None if observation is None else _text(observation)

    def _templated(self, content: environments.Content) -> bool:
        """Whether tools are passed to the chat template."""
        return self.settings.tools == "template" and not isinstance(content, str)

    # ---------------------------------------------------------------------- turns

    def _answers(self, going: Sequence[Talk], turn: int) -> list[Rollout | None]:
        """Generate the next message of each open conversation, batched per job; None if a member was not evaluated.

        Sampling draws depend on the row and the sample; without sampling, equal transcripts of different rows share a
        prompt, too, if their tools and template variables are equal.
        """
        jobs, asked = list[Job](), dict[tuple[int, Member, int], list[int]]()
        for number, group in groupby(enumerate(going), key=lambda numbered: numbered[1].job.id):
            prompts, places, rows = list[Prompt](), dict[Any, int](), list[tuple[int, int]]()
            for index, talk in group:
                drawn = (talk.prompt, talk.sample) if self.config.temperature > 0.0 else None
                place = places.setdefault((drawn, _read(talk)), len(prompts))
                if place == len(prompts):
                    prompts.append(self._prompt(talk, turn))
                rows.append((talk.member, place))
                asked.setdefault((number, talk.job.members[talk.member], place), []).append(index)
            once, sampling = tuple(dict.fromkeys(rows)), replace(talk.job.sampling, samples=1)
            jobs.append(replace(talk.job, prompts=tuple(prompts), rows=once, sampling=sampling, tokens=True))
        found = {index: r for r in self.engine.evaluate(jobs) for index in asked[r.job, r.member, r.prompt]}
        return [found.get(index) for index in range(len(going))]

    def _prompt(self, talk: Talk, turn: int) -> Prompt:
        prompt = replace(talk.job.prompts[talk.prompt], content=talk.content, turn=turn, sample=talk.sample)
        if not talk.tools or not self._templated(talk.content):
            return prompt
        return replace(prompt, template_kwargs={**prompt.template_kwargs, "tools": environments.schemas(talk.tools)})

    def _hear(self, talk: Talk, rollout: Rollout) -> None:
        """Pass the model's message to the environment, and append the message and the replies to the transcript."""
        talk.tokens += rollout.token_ids
        talk.read += rollout.prompt_tokens
        if not rollout.token_ids and rollout.finish == "length":  # no room is left in the context
            talk.finish = "length"
            return
        role = "tool" if self._templated(talk.content) and talk.tools else "user"
        hearing = self._thread.call(partial(_replies, talk, rollout.text, role))
        error = hearing.exception()
        replies = hearing.result() if error is None else ()
        talk.content = environments.continued(talk.content, rollout.text, replies or ())
        if error is not None:
            self._broke(talk, error)
        elif replies is None:
            talk.finish = rollout.finish

    # ------------------------------------------------------------------------ end

    def _scores(self, talks: Sequence[Talk], examples: Sequence[Example], *, after: int) -> list[tuple[float, ...]]:
        """Score the conversations whose environments did not fail, where rewards run: a value per reward, or NaN."""
        rows = [replace(example, prompt=begun(example.prompt)[0]) for example in examples]
        with self._scorer.round(rows, [talk.prompt for talk in talks], after=after) as scoring:
            for place, talk in enumerate(talks):
                if not talk.broken:
                    scoring.add(place, environments.since(talk.content, talk.begin), talk.environment, talk.tokens)
            values = scoring.finish()
        for place in scoring.declined():
            self._scorer.once.decline(examples[talks[place].prompt].id)
        self.failed.update(scoring.failed())
        return list(zip(*(values[reward.name] for reward in self.task.rewards), strict=True))

    def _end(self, talk: Talk, scores: tuple[float, ...]) -> Rollout:
        """Close the environment of a conversation and return the rollout."""
        if environments.has(talk.environment, "close"):
            self._thread.call(lambda: awaited(talk.environment.close()))
        return Rollout(
            job=talk.job.id,
            member=talk.job.members[talk.member],
            prompt=talk.prompt,
            sample=talk.sample,
            text=environments.since(talk.content, talk.begin),
            token_ids=tuple(talk.tokens),
            prompt_tokens=talk.read,
            finish=talk.finish or "length",
            scores=scores,
        )

    def _broke(self, talk: Talk, error: BaseException) -> None:
        """End a conversation whose environment failed: log the error, and count it for every reward."""
        talk.broken, talk.finish = True, talk.finish or "stop"
        fault = self._fault(error)
        self._scorer.once.show(self.task.name, fault, source="environment of task", lost="conversation")
        self.failed.update(reward.name for reward in self.task.rewards)
        self._causes[f"the environment of task {self.task.name!r} {fault.message}"] += 1
        if self._timeouts >= TIMEOUTS:
            raise self._stopped(f"{TIMEOUTS} calls of an environment hang")

    def _fault(self, error: BaseException) -> Fault:
        if not is_hang(error):
            return fault_of(error)
        self._timeouts += 1
        return Fault("hang", f"took longer than reward_timeout={self.config.reward_timeout:g} seconds")

    def _stopped(self, what: str) -> RewardError:
        usual = max(self._causes, key=lambda cause: self._causes[cause])
        fix = "Mend it, or raise reward_timeout if it is slow."
        return RewardError(f"{what}; most often {usual}. {fix} {self._scorer.advice}".strip())


def _read(talk: Talk) -> str:
    """Return what the model reads: the transcript, the template's variables, and the functions behind the tools."""
    tools = {name: id(getattr(tool, "__func__", tool)) for name, tool in talk.tools.items()}
    return repr((talk.content, talk.job.prompts[talk.prompt].template_kwargs, tools))


def _replies(talk: Talk, text: str, role: str) -> list[Message] | None:
    """Return the environment's replies to a message; None ends the conversation."""
    if environments.has(talk.environment, "step"):
        observation = awaited(talk.environment.step(text))
        return None if observation is None else [{"role": "user", "content": _text(observation)}]
    calls = environments.calls_in(text, talk.tools)
    return [{"role": role, "content": _text(environments.run(call, talk.tools))} for call in calls] or None


def _text(observation: Any) -> str:
    """Return an observation as text.  Errors are the environment's fault.

    Raises UnicodeEncodeError for text that no tokenizer reads, and TypeError for a truth value or a tuple,
    which environments of other libraries return.
    """
    if isinstance(observation, tuple | bool):
        raise TypeError(f"it answered {reprlib.repr(observation)}: return the text alone, or None to end")
    text = str(observation)
    text.encode()
    return text
