"""Prompts packed into one row of tokens; shared prefixes of a member's prompts are computed once.

A member's prompts form a tree: chat templates and system prompts, few-shot examples and several samples of one
prompt share their prefixes.  A token of the pack is a node of that tree, so its keys, values and hidden state
serve every prompt that passes through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class PrefixPack:
    """Prompts for the slots from ``first_slot`` on.  All lists run over tokens, except those named by prompt."""

    first_slot: int
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    members: list[int] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)
    """For each prompt: the index in the pack of the token at every position."""
    starts: list[int] = field(default_factory=list)
    """For each prompt: the first position whose token was added for it."""
    _nodes: dict[tuple[int, int], int] = field(default_factory=dict)

    def matched(self, member: int, prompt: Sequence[int]) -> list[int]:
        """Return the indices in the pack of the longest known prefix of ``prompt`` for this member."""
        path: list[int] = []
        node = -1 - member
        for token in prompt:
            following = self._nodes.get((node, token))
            if following is None:
                break
            node = following
            path.append(node)
        return path

    def add(self, member: int, prompt: Sequence[int], path: list[int]) -> None:
        """Append ``prompt``, whose prefix ``path`` is in the pack already."""
        start = len(path)
        node = path[-1] if path else -1 - member
        for token in prompt[start:]:
            node = self._nodes.setdefault((node, token), len(self.ids))
            path.append(node)
            self.ids.append(token)
        self.positions += range(start, len(prompt))
        self.members += [member] * (len(prompt) - start)
        self.paths.append(path)
        self.starts.append(start)

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each prompt."""
        return [len(path) for path in self.paths]

    def last(self) -> list[int]:
        """Index in the pack of each prompt's last token."""
        return [path[-1] for path in self.paths]

    def rectangle(self) -> NDArray[np.int64]:
        """Return indices in the pack, (prompts, longest); a shorter prompt repeats its last token."""
        longest = max(self.lengths)
        return np.array([path + path[-1:] * (longest - len(path)) for path in self.paths])


def packed(
    first_slot: int, members: Sequence[int], prompts: Sequence[Sequence[int]], *, tokens: int, padded: int
) -> PrefixPack:
    """Pack as many of the members' prompts (one of each member listed) as fit, from the first on, at least one.

    ``tokens`` bounds the computed tokens, ``padded`` the rectangle of prompts × longest prompt.
    """
    pack, longest = PrefixPack(first_slot), 0
    for count, (member, prompt) in enumerate(zip(members, prompts, strict=True)):
        path, longest = pack.matched(member, prompt), max(longest, len(prompt))
        too_many = len(pack.ids) + len(prompt) - len(path) > tokens or (count + 1) * longest > padded
        if count and too_many:
            break
        pack.add(member, prompt, path)
    return pack
