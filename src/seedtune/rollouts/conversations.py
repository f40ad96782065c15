"""Conversations with environments: all that a population has open are answered in one batch, turn by turn.

The first turn asks every member every prompt.  Then each environment hears what its model said, in a fixed order, and
the next turn asks those whose conversation goes on, each with a transcript of its own (`Job.rows`).
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

from seedtune.config.config import Config
from seedtune.engines.base import Engine
from seedtune.errors import RewardError
from seedtune.rewards.aggregate import keywords_of
from seedtune.rewards.base import Reward
from seedtune.rewards.execution.call import Fault, RewardResult, accepted, attempt, failed, fault_of
from seedtune.rewards.execution.deadline import Patience
from seedtune.rewards.scorer import Scorer
from seedtune.tasks.base import Task
from seedtune.tasks.environments.tools import Tools, calls_in, describe, run, schemas, tools_of
from seedtune.tasks.environments.transcript import Content, EnvironmentMessage, continued, introduced, opened, since
from seedtune.types import Example, Finish, Job, Member, Prompt, Rollout

TIMEOUTS = 16
"""Environments that may hang in one evaluation before the run stops; each costs the time-out."""


@dataclass(slots=True)
class Talk:
    """One conversation; ``job``, ``member``, ``prompt`` and ``sample`` are where its rollout belongs."""

    job: Job
    member: int
    prompt: int
    sample: int
    begin: Content
    content: Content
    environment: Any = None
    tools: Tools = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    read: int = 0
    finish: Finish | None = None
    broken: bool = False
    """The environment failed: it cannot go on, and has no reward."""


class Conversations:
    """Plays the jobs of one evaluation with a task's environment; what it or a reward does wrong costs the sample.

    ``scorer`` shows each kind of failure once in a run and knows how to go on after a stop.
    """

    def __init__(self, engine: Engine, task: Task, config: Config, scorer: Scorer) -> None:
        self.engine, self.task, self.config, self.how = engine, task, config, config.conversation
        self.failed: Counter[str] = Counter()
        """On how many conversations each reward failed: all, where an environment did."""
        self._scorer, self._patience = scorer, Patience(self.how.timeout)
        self._timeouts, self._causes = 0, Counter[str]()

    def rollouts(self, jobs: Sequence[Job], examples: Sequence[Example]) -> list[Rollout]:
        """One rollout for each member, prompt and sample: the transcript, all its tokens, and its scores.

        RewardError if a larger share of them than ``max_reward_failure_rate`` fails, or many hang.
        """
        try:
            return self._played(jobs, examples)
        finally:
            self._patience.close()

    def _played(self, jobs: Sequence[Job], examples: Sequence[Example]) -> list[Rollout]:
        talks = [self._begin(job, place, examples) for job in jobs for place in _places(job)]
        turn, going = 0, [talk for talk in talks if talk.finish is None]
        while going and turn < self.how.max_turns:
            for talk, rollout in zip(going, self._answers(going, turn), strict=True):
                if rollout is None:
                    talk.broken, talk.finish = True, "stop"
                else:
                    self._hear(talk, rollout)
            turn, going = turn + 1, [talk for talk in going if talk.finish is None]
        ended = [self._end(talk, examples[talk.prompt]) for talk in talks]
        self._stop_if_many(len(talks))
        return ended

    # ------------------------------------------------------------------ beginning

    def _begin(self, job: Job, place: tuple[int, int, int], examples: Sequence[Example]) -> Talk:
        """A new environment, reset with the columns of its row."""
        member, prompt, sample = place
        content = job.prompts[prompt].content
        talk = Talk(job, member, prompt, sample, content, content)
        answer, error = self._patience.call(partial(self._open, examples[prompt]))
        if error is not None:
            self._broke(talk, error)
            return talk
        talk.environment, talk.tools, told = answer
        if talk.tools and not self._templated(content):
            content = introduced(content, describe(talk.tools))
        talk.begin = talk.content = opened(content, told)
        return talk

    def _open(self, example: Example) -> tuple[Any, Tools, str | None]:
        assert self.task.environment is not None
        environment = self.task.environment()
        columns = {"prompt": example.prompt, **example.columns}
        told = environment.reset(**accepted(environment.reset, columns))
        tools = {} if _has(environment, "step") else tools_of(environment)
        return environment, tools, None if told is None else str(told)

    def _templated(self, content: Content) -> bool:
        """Whether tools go through the chat template."""
        return self.how.tools == "template" and not isinstance(content, str)

    # ---------------------------------------------------------------------- turns

    def _answers(self, going: Sequence[Talk], turn: int) -> list[Rollout | None]:
        """What the models of open conversations say, all in one batch of each job; None where nobody could ask."""
        jobs, asked = list[Job](), dict[tuple[int, Member, int], list[int]]()
        for job in {talk.job.id: talk.job for talk in going}.values():
            mine = [index for index, talk in enumerate(going) if talk.job.id == job.id]
            prompts, rows = self._transcripts([going[index] for index in mine], turn)
            once, how = tuple(dict.fromkeys(rows)), replace(job.sampling, samples=1)
            jobs.append(replace(job, prompts=prompts, rows=once, sampling=how, tokens=True))
            for (member, prompt), index in zip(rows, mine, strict=True):
                asked.setdefault((job.id, job.members[member], prompt), []).append(index)
        found = {index: r for r in self.engine.evaluate(jobs) for index in asked[r.job, r.member, r.prompt]}
        return [found.get(index) for index in range(len(going))]

    def _transcripts(self, talks: Sequence[Talk], turn: int) -> tuple[tuple[Prompt, ...], list[tuple[int, int]]]:
        """The transcripts as prompts, equal ones once, and (member, prompt) of every conversation.

        Draws belong to a row and a sample; without any, conversations of different rows may share a prompt, too.
        """
        prompts, places, rows = list[Prompt](), dict[Any, int](), list[tuple[int, int]]()
        for talk in talks:
            drawn = (talk.prompt, talk.sample) if self.config.temperature > 0.0 else None
            name = (drawn, repr(talk.content))
            if name not in places:
                places[name] = len(prompts)
                prompts.append(self._prompt(talk, turn))
            rows.append((talk.member, places[name]))
        return tuple(prompts), rows

    def _prompt(self, talk: Talk, turn: int) -> Prompt:
        prompt = replace(talk.job.prompts[talk.prompt], content=talk.content, turn=turn, sample=talk.sample)
        if not talk.tools or not self._templated(talk.content):
            return prompt
        return replace(prompt, template_kwargs={**prompt.template_kwargs, "tools": schemas(talk.tools)})

    def _hear(self, talk: Talk, rollout: Rollout) -> None:
        """Let the environment hear what was said, and write both down."""
        talk.tokens += rollout.token_ids
        talk.read += rollout.prompt_tokens
        if not rollout.token_ids and rollout.finish == "length":  # no room is left in the context
            talk.finish = "length"
            return
        role = "tool" if self._templated(talk.content) and talk.tools else "user"
        replies, error = self._patience.call(partial(_replies, talk, rollout.text, role))
        talk.content = continued(talk.content, rollout.text, replies or ())
        if error is not None:
            self._broke(talk, error)
        elif replies is None:
            talk.finish = rollout.finish

    # ------------------------------------------------------------------------ end

    def _end(self, talk: Talk, example: Example) -> Rollout:
        """The rollout of a conversation that is over, or has had all its turns."""
        text, scores = since(talk.content, talk.begin), tuple(math.nan for _ in self.task.rewards)
        if not talk.broken:
            row = replace(example, columns={**example.columns, "environments": talk.environment})
            scores = tuple(self._scored(reward, row, text) for reward in self.task.rewards)
        if _has(talk.environment, "close"):
            self._patience.call(talk.environment.close)
        return Rollout(
            job=talk.job.id,
            member=talk.job.members[talk.member],
            prompt=talk.prompt,
            sample=talk.sample,
            text=text,
            token_ids=tuple(talk.tokens),
            prompt_tokens=talk.read,
            finish=talk.finish or "length",
            scores=scores,
        )

    def _scored(self, reward: Reward, row: Example, text: str) -> float:
        """What a reward, which receives ``environments``, too, gives one conversation; NaN if it fails."""
        keywords = keywords_of([row], [text], list(row.columns))
        found, error = self._patience.call(partial(attempt, reward.function, keywords, 1))
        answer: RewardResult = found if error is None else failed(self._fault(error), 1)
        for fault in answer.faults.values():
            self._scorer.once.show(reward.name, fault, lost="conversation")
            self._count([reward.name], f"the reward function {reward.name!r} {fault.message}")
        return answer.values[0]

    def _broke(self, talk: Talk, error: BaseException) -> None:
        """A conversation cannot go on: show why, and count it for every reward."""
        talk.broken, talk.finish = True, talk.finish or "stop"
        fault = self._fault(error)
        self._scorer.once.show(self.task.name, fault, who="environment of task", lost="conversation")
        names = [reward.name for reward in self.task.rewards]
        self._count(names, f"the environment of task {self.task.name!r} {fault.message}")

    def _fault(self, error: BaseException) -> Fault:
        if not isinstance(error, TimeoutError) or error.__traceback__ is not None:  # the second: its own, raised
            return fault_of(error)
        self._timeouts += 1
        return Fault("hang", f"took longer than conversation.timeout={self.how.timeout:g} seconds")

    def _count(self, rewards: Sequence[str], what: str) -> None:
        """Count a failure for ``rewards``; RewardError when too many calls hang, each of which costs the time-out."""
        self.failed.update(rewards)
        self._causes[what] += 1
        if self._timeouts >= TIMEOUTS:
            raise self._stopped(f"{TIMEOUTS} calls of an environment or its rewards hang")

    def _stop_if_many(self, talks: int) -> None:
        share, most = self.config.max_reward_failure_rate, max(self.failed.values(), default=0)
        if most > share * talks:
            raise self._stopped(
                f"{most} of {talks} conversations failed, more than max_reward_failure_rate={share:g} allows"
            )

    def _stopped(self, what: str) -> RewardError:
        usual = max(self._causes, key=lambda cause: self._causes[cause])
        fix = "Mend it, or raise conversation.timeout if it is slow."
        return RewardError(f"{what}; most often {usual}. {fix} {self._scorer.advice}".strip())


def _places(job: Job) -> list[tuple[int, int, int]]:
    """Member, prompt and sample of every conversation of a job."""
    return [(m, p, s) for (m, p), s in product(job.pairs, range(job.sampling.samples))]


def _replies(talk: Talk, text: str, role: str) -> list[EnvironmentMessage] | None:
    """What the environment says to a message; None ends the conversation."""
    if _has(talk.environment, "step"):
        told = talk.environment.step(text)
        return None if told is None else [("user", str(told))]
    calls = calls_in(text, talk.tools)
    return [(role, run(call, talk.tools)) for call in calls] or None


def _has(environment: Any, method: str) -> bool:
    """Whether an environment defines one of the methods that it need not."""
    return inspect.ismethod(getattr(environment, method, None))
