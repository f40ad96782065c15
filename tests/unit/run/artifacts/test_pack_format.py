"""The pack: what is read back updates the weights bit for bit, and nothing but what was written is read."""

from __future__ import annotations

import hashlib
import math
import tracemalloc
import zlib
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedtune.errors import PackError
from seedtune.numerics.noise import Noise
from seedtune.numerics.rounding import nearest
from seedtune.numerics.weights import Weights
from seedtune.run import sealing
from seedtune.run.artifacts import pack_format
from seedtune.run.artifacts.pack_format import About, Pack
from seedtune.run.lineage import Lineage
from seedtune.run.records import Record
from seedtune.strategies.shaping import zscore
from seedtune.types import Decay, Member, Plan, Term, Update


def about(generations: int, *, rank: int = 1, perturbation: str = "lowrank", subspaces: int = 1, **changes) -> About:
    config = {"engine": "toy", "seed": 7, "perturbation": perturbation, "rank": rank, "subspaces": subspaces}
    prints = {str(generations): "ab" * 16}
    return replace(About("0.1.0", "v1", "toy", "0" * 32, "float32", config, generations, prints), **changes)


def packed(updates, **settings) -> bytes:
    return pack_format.dump(Pack(about(len(updates), **settings), tuple(updates)))


def unpacked(updates, **settings) -> tuple[Update, ...]:
    return tuple(pack_format.parse(packed(updates, **settings), "file").updates)


def of_kernel(weight: float, scale: float) -> bytes:
    """The bits that the kernels make of a term's weight."""
    with np.errstate(over="ignore"):
        return np.float32(weight / scale).tobytes()


words = st.integers(0, 2**32 - 1)
floats = st.floats(-3e37, 3e37)
terms = st.builds(Term, words, words, floats)
decays = st.none() | st.builds(Decay, st.floats(0, 1, width=32), st.floats(0, 1, width=32))


@given(
    rows=st.lists(st.tuples(st.lists(terms, max_size=6), decays), max_size=6),
    rank=st.integers(1, 64),
    perturbation=st.sampled_from(["lowrank", "gaussian"]),
    subspaces=st.integers(1, 16),
)
def test_every_update_is_read_back_as_the_kernels_see_it(rows, rank, perturbation, subspaces):
    updates = [Update(index, tuple(terms), decay) for index, (terms, decay) in enumerate(rows)]
    again = unpacked(updates, rank=rank, perturbation=perturbation, subspaces=subspaces)
    root = math.sqrt(rank) if perturbation == "lowrank" else 1.0
    assert [(u.generation, u.decay, [term[:2] for term in u.terms]) for u in again] == [
        (u.generation, u.decay, [term[:2] for term in u.terms]) for u in updates
    ]
    for one, two in zip(updates, again, strict=True):
        kept = [[of_kernel(t.weight * math.sqrt(subspaces), root) for t in u.terms] for u in (one, two)]
        assert kept[0] == kept[1]


def test_a_pack_of_a_pack_has_the_same_bytes():
    updates = unpacked([Update(0, (Term(0, 3, 1 / 3), Term(0, 5, -1e-9))), Update(1, ())], rank=3)
    assert packed(updates, rank=3) == packed(unpacked(updates, rank=3), rank=3)


def record(generation: int, labels: str, rewards: list[float]) -> Record:
    members = tuple(Member.parse(label, generation) for label in labels.split())
    coefficients = tuple(zscore(np.array(rewards)[:, None]).tolist())
    plan = Plan(generation, 0.1, members)
    return Record(plan, 0.3, tuple(rewards), coefficients, (0,), None, {})


def updates_of(records: list[Record]) -> list[Update]:
    return Lineage(records).updates(len(records))


RECORDS = {
    "pairs": [record(0, "0+ 0- 1+ 1-", [1.0, 0.1, 0.7, -3.0]), record(1, "0+ 0- 1+ 1-", [0.3, 0.1, 0.7, 2.0])],
    "one sign": [record(0, "0+ 1+ 2+", [1.0, 0.1, 0.7]), record(1, "0+ 1+ 2+", [0.3, 0.1, 0.7])],
    "NaN rewards": [record(0, "0+ 0- 1+ 1-", [1.0, math.nan, 0.7, math.nan])],
    "no scores": [record(0, "0+ 0-", [math.nan, math.nan]), record(1, "0+ 0-", [0.0, 1.0])],
    "all tied": [record(0, "0+ 0-", [2.0, 2.0]), record(1, "0+ 0-", [0.0, 1.0]), record(2, "0+ 0-", [5.0, 5.0])],
    "noise of another generation": [record(0, "0+ 7:3+ 7:3- 9:0-", [1.0, 0.1, 0.7, -3.0])],
    "several generations": [record(g, f"0+ {g + 1}:0+ 0:5- 2:5+", [1.0, g, 0.7, -3.0]) for g in range(5)],
    "no generation": [],
}


def moved(updates, noise: Noise) -> str:
    """The fingerprint of float32 and bfloat16 weights after the updates, all in one batch."""
    draw = np.random.default_rng(0)
    base = {name: draw.standard_normal((5, 3), np.float32) for name in ("a", "b")}
    tensors = {"a": base["a"].copy(), "b": nearest(base["b"], "bfloat16")}
    current = Weights(tensors, noise, anchor=base.__getitem__)
    current.apply(*updates)
    return current.fingerprint()


NOISES = [Noise(7, rank=rank) for rank in (1, 3, 4)] + [Noise(7, "gaussian")]
NOISES += [Noise(7, rank=2, subspaces=3), Noise(7, "gaussian", subspaces=3)]


@pytest.mark.parametrize("noise", NOISES, ids=str)
@pytest.mark.parametrize("case", RECORDS)
def test_a_packed_run_moves_the_current_weights_to_the_same_bits(case, noise):
    updates = updates_of(RECORDS[case])
    again = unpacked(updates, rank=noise.rank, perturbation=noise.perturbation, subspaces=noise.subspaces)
    assert moved(again, noise) == moved(updates, noise)


def test_decay_is_packed_with_its_updates():
    decays = [None, Decay(0.1, 1 / 3), Decay(), Decay(l1=1e-3), None]
    plain = updates_of(RECORDS["several generations"])
    updates = [replace(update, decay=decay) for update, decay in zip(plain, decays, strict=True)]
    assert moved(unpacked(updates), Noise(7)) == moved(updates, Noise(7)) != moved(plain, Noise(7))


@pytest.mark.parametrize("signs", ["+-", "+"])
def test_two_hundred_generations_of_thirty_two_members_fit_in_sixty_four_kilobytes(signs):
    draw = np.random.default_rng(1)
    labels = " ".join(f"{pair}{sign}" for pair in range(32 // len(signs)) for sign in signs)
    records = [record(g, labels, draw.standard_normal(32).tolist()) for g in range(200)]
    updates = updates_of(records)
    assert sum(len(update.terms) for update in updates) == 200 * 32 // len(signs)
    assert len(packed(updates)) <= {"+-": 14_000, "+": 27_000}[signs]


# ------------------------------------------------------------------- refusals


WHOLE = packed(updates_of(RECORDS["pairs"]), licence="MIT", note="nota bene")


def refusal(raw: bytes) -> str:
    with pytest.raises(PackError) as refused:
        pack_format.parse(raw, "file")
    return str(refused.value)


def test_a_pack_cut_at_any_byte_is_truncated():
    header = WHOLE.index(b"\n")
    for cut in range(len(WHOLE)):
        where = (
            f"it ends within its header, after {cut} bytes" if cut <= header else f"it has {cut} of {len(WHOLE)} bytes"
        )
        assert refusal(WHOLE[:cut]) == f"file is truncated: {where}. Copy it again."


def test_a_pack_with_a_flipped_bit_anywhere_is_refused():
    header = WHOLE.index(b"\n")
    for place, byte in enumerate(WHOLE):
        message = refusal(WHOLE[:place] + bytes([byte ^ 1 << place % 8]) + WHOLE[place + 1 :])
        if place < len(pack_format.MAGIC):
            assert message == "file is not a pack. Give a file that 'seedtune pack' wrote."
        elif place < header:
            assert message.startswith("file was changed after it was written: the checksum of its header is another.")
        elif place > header:
            assert message.startswith("file was changed after it was written: the checksum of it is another.")


def test_a_pack_with_something_behind_it_is_refused():
    assert refusal(WHOLE + b"\0").startswith("file was changed")


@pytest.mark.parametrize("raw", [b"\x80\x04", b'{"a": 1}\n', b'{"seedtune": 1}\n', WHOLE[1:]])
def test_what_is_no_pack_is_called_that(raw):
    assert refusal(raw).startswith("file is not a pack.")


def resealed(raw: bytes = WHOLE, **changes) -> bytes:
    """A pack with another header, and good checksums."""
    line, _, rest = raw.partition(b"\n")
    header, _ = sealing.unseal(line)
    line, _ = sealing.seal({**header, **changes})
    body = line + rest[: -pack_format.DIGEST]
    return body + hashlib.blake2b(body, digest_size=pack_format.DIGEST).digest()


def test_a_newer_format_is_named_with_the_version_that_writes_it():
    message = refusal(resealed(seedtune_pack=2, seedtune="9.1"))
    assert message.startswith("file has pack format 2, made by seedtune 9.1; this version reads format 1.")


@pytest.mark.parametrize(
    "changes",
    [
        {"terms": 3},
        {"terms": 2**40},
        {"generations": 3},
        {"generations": -1},
        {"generations": "many"},
        {"fingerprints": {}},
        {"fingerprints": {"2": "ab", "x": "cd"}},
        {"config": {}},
        {"config": {"perturbation": "lowrank", "rank": -4}},
        {"config": {"perturbation": "gaussian", "subspaces": 0}},
        {"generations": True},
        {"terms": 10**30},
        {"fingerprints": {"2": 5}},
        {"fingerprints": {"2": "ab", "9" * 5000: "cd"}},
        {"config": {"perturbation": "lowrank", "rank": "4"}},
        {"config": []},
        {"model": None},
        {"licence": 7},
        {"note": "\ud800"},
        {"bytes": None},
    ],
    ids=str,
)
def test_a_forged_header_is_refused_without_a_traceback(changes):
    assert refusal(resealed(**changes)).startswith("file has good checksums but does not hold what a pack holds")


def test_a_forged_body_is_refused_without_a_traceback():
    far = pack_format.dump(Pack(about(1), (Update(0, (Term(0, 2**32, 1.0),)),)))
    assert "noise of generation 0, pair 4294967296" in refusal(far)
    early = pack_format.dump(Pack(about(1), (Update(0, (Term(-1, 0, 1.0),)),)))
    assert "noise of generation -1, pair 0" in refusal(early)


def test_a_pack_from_before_subspaces_is_read_as_one_of_a_single_subspace():
    old = about(1)
    del old.config["subspaces"]
    updates = (Update(0, (Term(0, 3, 0.25),)),)
    assert tuple(pack_format.parse(pack_format.dump(Pack(old, updates)), "file").updates) == updates


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(PackError, match=r"cannot read .*nothing: No such file or directory\. Check the path\."):
        pack_format.read(tmp_path / "nothing")


def bomb(terms: int, generations: int = 1, weights: bytes | None = None) -> bytes:
    """A small pack that says it holds many terms."""
    lengths = np.zeros(generations, "<i8")
    lengths[0] = terms
    columns = lengths.tobytes() + bytes(16 * terms) + (bytes(4 * terms) if weights is None else weights)
    body = zlib.compress(columns + bytes(9 * generations), 9)
    header = {"seedtune_pack": 1, **asdict(about(generations)), "terms": terms, "bytes": len(body)}
    line, _ = sealing.seal(header)
    return line + body + hashlib.blake2b(line + body, digest_size=pack_format.DIGEST).digest()


@pytest.mark.parametrize(("terms", "generations"), [(4_000_000, 1), (300_000, 1), (1, 4_000_000)])
def test_a_small_file_of_many_terms_is_refused_before_they_are_made(terms, generations):
    raw = bomb(terms, generations)
    tracemalloc.start()
    assert f"{generations} generations of {terms} terms in all, in" in refusal(raw)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000 + 2 * len(raw)
    tracemalloc.stop()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_refused(value):
    weights = np.full(3, value, "<f4").view(np.uint8).reshape(-1, 4).T.tobytes()
    assert "a weight is infinite or no number" in refusal(bomb(3, weights=weights))


def test_a_file_larger_than_any_pack_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "large").write_bytes(b"x" * 100)
    monkeypatch.setattr(pack_format, "SIZE", 99)
    with pytest.raises(PackError, match="has more than 99 bytes, which no pack has"):
        pack_format.read(tmp_path / "large")


def test_what_cannot_be_read_is_not_written(monkeypatch):
    updates = [Update(0, (Term(0, 1, 0.5), Term(0, 2, 0.5))), Update(1, (Term(1, 1, 0.5),))]
    assert unpacked(updates) == tuple(updates)
    monkeypatch.setattr(pack_format, "TERMS", 4)
    with pytest.raises(PackError, match=r"2 generations with 3 terms .* more than a pack holds.*Pack fewer gen"):
        packed(updates)


def test_terms_that_compress_to_almost_nothing_are_read_back():
    updates = (Update(0, (Term(0, 0, 0.5),) * 50_000),)
    assert unpacked(updates) == updates


def test_many_terms_take_little_memory():
    count = 100_000
    weights = np.random.default_rng(0).standard_normal(count).tolist()
    raw = packed([Update(0, tuple(Term(0, pair, weight) for pair, weight in enumerate(weights)))])
    tracemalloc.start()
    updates = pack_format.parse(raw, "file").updates
    assert tracemalloc.get_traced_memory()[1] < 45 * count + 2 * len(raw)
    tracemalloc.stop()
    assert [term.pair for term in updates[0].terms] == list(range(count))
    assert updates[-1:] == (updates[0],)
    with pytest.raises(IndexError):
        updates[1]
