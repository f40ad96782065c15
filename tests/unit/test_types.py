"""Member labels and the other plain words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedtune.types import UNPERTURBED, Coverage, Member

counts = st.integers(0, 2**32 - 1)


@given(generation=counts, noise=counts, pair=counts, sign=st.sampled_from([1, -1]))
def test_every_member_is_read_back_from_its_label(generation, noise, pair, sign):
    member = Member(noise, pair, sign)
    assert Member.parse(member.label(generation), generation) == member


def test_labels_are_short_for_fresh_noise_and_name_the_generation_of_reused_noise():
    assert Member(7, 3, 1).label(7) == "3+"
    assert Member(7, 3, -1).label(7) == "3-"
    assert Member(7, 3, 1).label(9) == "7:3+"


def test_the_unperturbed_member_is_labelled_as_such_in_any_generation():
    assert UNPERTURBED.label(5) == "unperturbed"
    assert Member.parse("unperturbed", 5) == UNPERTURBED


@pytest.mark.parametrize("label", ["", "3", "+", "3*", "-3+", "a:3+", "1:2:3+", "3+ ", " 3+", "3.0+"])
def test_what_is_no_label_is_refused(label):
    with pytest.raises(ValueError, match="not a member label"):
        Member.parse(label, 0)


def test_coverage_is_a_share_of_all_parameters():
    assert Coverage(30, 40, ()).fraction == 0.75
    assert Coverage(0, 0, ()).fraction == 0.0
