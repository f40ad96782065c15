"""The audit: an honest ledger passes whatever its rewards, an edited one is named by generation and member."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import runs
from seedtune import strategies
from seedtune.errors import LedgerError
from seedtune.run.artifacts.consistency import Audit, audit
from seedtune.run.ledger import Contents
from seedtune.run.records import Header, Record
from seedtune.strategies import sigma_rule
from seedtune.strategies.base import Feedback
from seedtune.strategies.shaping import SHAPINGS, member_rewards
from seedtune.strategies.sigma_rule import Measurement
from seedtune.types import Decay, Member

ROOT = Path("run")


def config(shaping: str, **settings):
    return runs.toy(ROOT, shaping=shaping, **settings)


def ledger_of(shaping: str, scores: list[np.ndarray], **settings) -> Contents:
    """What a run that got these scores (members, prompts) writes."""
    strategy = strategies.create(config(shaping, population=len(scores[0]), **settings))
    header = Header(
        seedtune="0.1.0", noise="v1", model="toy", data="", prompts="", resolved_weights_dtype="float32", arithmetic={},
        base_fingerprint="0", tokenizer_fingerprint="", config={},
    )  # fmt: skip
    contents, state = Contents(header), {}
    for generation, matrix in enumerate(scores):
        plan = strategy.ask(state, generation)
        step = strategy.tell(state, plan, Feedback(matrix))
        rewards, state = tuple(member_rewards(matrix).tolist()), step.state
        record = Record(plan, step.alpha, rewards, step.coefficients, (0,), None, {}, state, step.evidence.agreement)
        contents.records.append(record)
    return contents


def checked(shaping: str, contents: Contents, **settings) -> Audit:
    return audit(ROOT, config(shaping, population=len(contents.records[0].rewards), **settings), contents)


def scores(generations: int = 3, members: int = 6, prompts: int = 5) -> list[np.ndarray]:
    draw = np.random.default_rng(5)
    return [draw.standard_normal((members, prompts)) for _ in range(generations)]


@pytest.mark.parametrize("antithetic", [True, False])
def test_an_honest_ledger_passes(antithetic):
    settings = {"antithetic": antithetic}
    assert checked("zscore", ledger_of("zscore", scores(), **settings), **settings) == Audit(exact=3)
    assert checked("per_prompt", ledger_of("per_prompt", scores(), **settings), **settings) == Audit(scaled=3)


@pytest.mark.parametrize("shaping", SHAPINGS)
def test_an_honest_ledger_of_uneven_subspaces_passes(shaping):
    settings = {"subspaces": 3}  # 2, 1 and 1 of four pairs
    expected = Audit(scaled=3) if shaping == "per_prompt" else Audit(exact=3)
    assert checked(shaping, ledger_of(shaping, scores(members=8), **settings), **settings) == expected


numbers = st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-100) | st.sampled_from([0.0, 1.0, 1e15, math.nan])
matrices = arrays.arrays(np.float64, st.tuples(st.sampled_from([2, 4, 8]), st.integers(1, 5)), elements=numbers)


@pytest.mark.parametrize("shaping", SHAPINGS)
@given(matrix=matrices)
def test_no_honest_scores_are_called_edited(shaping, matrix):
    assert sum(vars_of(checked(shaping, ledger_of(shaping, [matrix])))) == 1


def vars_of(result: Audit) -> tuple[int, int, int]:
    return result.exact, result.scaled, result.unchecked


def edited(contents: Contents, generation: int, **changes) -> Contents:
    records = list(contents.records)
    records[generation] = replace(records[generation], **changes)
    return replace(contents, records=records)


@given(bit=st.integers(0, 63), member=st.integers(0, 5))
def test_any_flipped_bit_of_a_coefficient_is_named(bit, member):
    contents = ledger_of("zscore", scores())
    coefficients = list(contents.records[1].coefficients)
    coefficients[member] = runs.flip_bit(coefficients[member], bit)
    label = re.escape(contents.records[1].plan.members[member].label(1))
    with pytest.raises(LedgerError, match=f"run: generation 1: the coefficient of member {label} is ") as refused:
        checked("zscore", edited(contents, 1, coefficients=tuple(coefficients)))
    assert ("last bits only" in str(refused.value)) == (bit < 13 and math.isfinite(coefficients[member])) or bit < 16


def test_a_coefficient_that_scores_per_prompt_cannot_give_is_named():
    contents = ledger_of("per_prompt", scores())
    coefficients = list(contents.records[2].coefficients)
    coefficients[3] *= 1 + 1e-6
    with pytest.raises(LedgerError, match=r"run: generation 2: the coefficient of member 1- is "):
        checked("per_prompt", edited(contents, 2, coefficients=tuple(coefficients)))


@pytest.mark.parametrize("factor", [-1.0, 3.0])
def test_coefficients_per_prompt_of_the_wrong_sign_or_too_large_are_named(factor):
    contents = ledger_of("per_prompt", scores())
    wrong = tuple(factor * z for z in contents.records[0].coefficients)
    with pytest.raises(LedgerError, match="run: generation 0: the coefficient of member"):
        checked("per_prompt", edited(contents, 0, coefficients=wrong))


def test_an_edited_reward_is_named_by_its_generation():
    contents = ledger_of("zscore", scores())
    rewards = (contents.records[1].rewards[0] + 1e-9, *contents.records[1].rewards[1:])
    with pytest.raises(LedgerError, match="run: generation 1: the coefficient of member"):
        checked("zscore", edited(contents, 1, rewards=rewards))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sigma": 0.3}, "recorded is sigma 0.3, but the configuration gives 0.05"),
        ({"members": (Member(2, 9, 1),) * 6}, r"recorded is member 9\+, but the strategy asks for 0\+"),
        ({"members": ()}, "recorded are 0 members, but the strategy asks for 6"),
    ],
    ids=str,
)
def test_a_plan_that_the_strategy_does_not_make_is_named(changes, reason):
    contents = ledger_of("zscore", scores())
    plan = replace(contents.records[2].plan, **changes)
    with pytest.raises(LedgerError, match=f"run: generation 2 does not follow from the run's configuration: {reason}"):
        checked("zscore", edited(contents, 2, plan=plan))


@pytest.mark.parametrize("changes", [{"alpha": 0.3}, {"decay": Decay(0.1)}, {"rollback_to": 1}], ids=str)
def test_a_decision_that_the_strategy_does_not_make_is_named(changes):
    with pytest.raises(LedgerError, match=f"run: generation 2: recorded is {next(iter(changes))} "):
        checked("zscore", edited(ledger_of("zscore", scores()), 2, **changes))


@pytest.mark.parametrize("changes", [{"agreement": 0.9}, {"reward_unperturbed": 5.0}], ids=str)
def test_evidence_from_which_the_recorded_step_does_not_follow_is_named(changes):
    contents = ledger_of("zscore", scores(), alpha=None)
    assert checked("zscore", contents, alpha=None) == Audit(exact=3)
    with pytest.raises(LedgerError, match=r"run: generation 1: recorded is (alpha|state of the strategy) "):
        checked("zscore", edited(contents, 1, **changes), alpha=None)


MEASURED = (Measurement(0.001, 0.001), Measurement(0.008, 0.07))


def with_measurements(*measured: Measurement) -> Contents:
    contents = ledger_of("zscore", scores())
    return replace(contents, header=replace(contents.header, measured=measured))


def test_a_sigma_that_follows_from_its_measurements_passes():
    expected = sigma_rule.found(MEASURED)
    contents = ledger_of("zscore", scores(), sigma=expected)
    contents = replace(contents, header=replace(contents.header, measured=MEASURED))
    assert checked("zscore", contents, sigma=expected) == Audit(exact=3)


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        (MEASURED, r"σ is 0\.05, but its measurements give 0\.0096"),
        (MEASURED[:1], "measurement 2 of σ is none that the rule asks for"),
        ((*MEASURED, MEASURED[1]), "measurement 3 of σ is none"),
        ((Measurement(0.002, 0.1),), "measurement 1 of σ is none"),
        ((MEASURED[0], Measurement(0.05, 0.1)), "measurement 2 of σ is none"),
    ],
    ids=str,
)
def test_a_sigma_that_its_measurements_do_not_give_is_named(measured, message):
    with pytest.raises(LedgerError, match=f"run: {message}"):
        checked("zscore", with_measurements(*measured))


def test_a_state_that_the_strategy_does_not_reach_is_named():
    with pytest.raises(LedgerError, match=r"run: generation 0: recorded is state of the strategy \{'step': 1\}"):
        checked("zscore", edited(ledger_of("zscore", scores()), 0, state={"step": 1}))


def test_members_that_tie_are_not_checked_where_scores_per_prompt_decide():
    tied = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert checked("per_prompt", ledger_of("per_prompt", [tied])) == Audit(unchecked=1)
    assert checked("zscore", ledger_of("zscore", [tied])) == Audit(exact=1)
