"""Environments, scripted members and played conversations for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from seedtune.config.config import Config
from seedtune.rewards.base import Reward
from seedtune.rollouts.evaluator import Evaluator, Outcome
from seedtune.tasks.base import Task
from seedtune.tasks.data.rows import examples
from seedtune.tasks.environments import environment_reward
from seedtune.types import UNPERTURBED, Job, Member, Plan, Rollout

MEMBERS = (Member(0, 0, 1), Member(0, 0, -1), Member(0, 1, 1))
TEXTS = examples([{"prompt": f"count from {n}:", "start": n} for n in (0, 5)], "train")
CHATS = examples([{"prompt": [{"role": "user", "content": "Count."}], "start": n} for n in (0, 5)], "train")


class Counting:
    """Adds what is said to ``start`` until 10 is reached; the reward is the number of turns."""

    log: list[str]

    def reset(self, start: int) -> str | None:
        self.total, self.turns = start, 0
        return " go\n" if start else None

    def step(self, text: str) -> str | None:
        self.total += int(text)
        self.turns += 1
        return f"now {self.total}" if self.total < 10 else None

    def reward(self) -> float:
        return float(self.turns)


class Mute(Counting):
    """Counts without a word in front."""

    def reset(self, start: int) -> None:
        super().reset(start)


class Calling:
    """The same with a tool."""

    def reset(self, start: int) -> None:
        self.total, self.reward = start, 0.0

    def add(self, number: int) -> str:
        """
        Add a number.

        Args:
            number: What is added.

        Returns:
            The sum.
        """
        self.total += number
        self.reward += 1.0
        return f"now {self.total}"


class Scripted:
    """Members answer by a function of (member, prompt), the last job first; notes the jobs."""

    def __init__(self, answer: Callable[[Member, object], str]) -> None:
        self.answer, self.jobs = answer, list[list[Job]]()

    def evaluate(self, jobs: Iterable[Job]) -> Iterator[Rollout]:
        self.jobs.append(list(jobs))
        for job in reversed(self.jobs[-1]):
            for member, place in reversed(job.pairs):
                prompt = job.prompts[place]
                text = self.answer(job.members[member], prompt)
                ids = tuple(text.encode())
                length = len(str(prompt.content))
                yield Rollout(job.id, job.members[member], place, 0, text, ids, length, "stop" if ids else "length")


STEPS = {MEMBERS[0]: "5", MEMBERS[1]: "2", MEMBERS[2]: "100", UNPERTURBED: "4"}


def steps(member: Member, _: object) -> str:
    return STEPS[member]


def calls(member: Member, prompt) -> str:
    """Two calls, then a farewell."""
    said = sum(message["role"] == "assistant" for message in prompt.content)
    return f"add({STEPS[member]})" if said < 2 else "done"


def task(environment, rows=TEXTS, *rewards: Reward) -> Task:
    return Task("talk", rows, rows, rewards or (Reward("own", environment_reward),), environment=environment)


def played(engine, work: Task, *, members=MEMBERS, **settings) -> Outcome:
    config = Config(engine="toy", task="toy", **settings)
    return Evaluator(engine, work, config).evaluate(members, work.train, plan=Plan(3, 0.1, members))


def of(outcome: Outcome, member: Member, prompt: int, sample: int = 0) -> Rollout:
    return next(r for r in outcome.rollouts if (r.member, r.prompt, r.sample) == (member, prompt, sample))
