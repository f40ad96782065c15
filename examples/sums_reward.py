"""A reward of your own: any function with TRL's signature.  Columns of the data arrive by their names."""

import re


def last_number(completions, answer, **columns):
    """1 for the right number at the end of a completion, 0.1 for a wrong one, 0 for none."""
    return [score(completion[0]["content"], target) for completion, target in zip(completions, answer, strict=True)]


def score(text, target):
    numbers = re.findall(r"-?\d+", text)
    if not numbers:
        return 0.0
    return 1.0 if numbers[-1] == target else 0.1


def brevity(completions):
    """Minus the length; give it a small weight."""
    return [-float(len(completion[0]["content"])) for completion in completions]
