"""Fingerprints of weights: 128 bits that change with any bit of any element, and that add up over slices.

``F(tensor) = sum over elements of mix(bits of the element, absolute index, tensor key)  (mod 2**64)``, in two
independent lanes: lane l adds ``finaliser_l(bits[i] + key_l + i * step_l)``.  A sum does not depend on order, so ranks
that hold slices of a tensor add their fingerprints and get the whole tensor's, and tensors add up to a model's.  For a
fixed index ``mix`` is a bijection of 64 bits, so changing one element always changes both lanes.  It is a check against
mistakes (a missed update, a torn file, a wrong base model), not a cryptographic hash.

The kernels compute the sum; see `seedtune.numerics.weights.tensor_fingerprint`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Fingerprint = tuple[int, int]
"""Two lanes, each an integer in [0, 2**64)."""

SCHEME = "v1"
MODULUS = 1 << 64

# Lane 0: step and finaliser of splitmix64 (Steele, Lea, Flood 2014).
# Lane 1: another odd step, finaliser of MurmurHash3.
STEP0, STEP1 = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03
SPLITMIX_A, SPLITMIX_B = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
MURMUR_A, MURMUR_B = 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53


def tensor_key(name: str, itemsize: int) -> Fingerprint:
    """Return a tensor's key: BLAKE2b-128 of scheme tag, element size and Hugging Face name, as two 64-bit lanes."""
    text = f"seedtune-fingerprint-{SCHEME}\0{itemsize}\0{name}".encode()
    digest = hashlib.blake2b(text, digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def bits_of(array: NDArray[Any]) -> NDArray[Any]:
    """View an array of 2- or 4-byte elements as uint16 or uint32 of the same shape, without a copy.

    Pass bfloat16, which numpy lacks, as its uint16 view. Raises ValueError for other element sizes.
    """
    if array.dtype.itemsize not in (2, 4) or array.dtype.kind not in "fiu":
        raise ValueError(
            f"a fingerprint needs 2- or 4-byte elements, got {array.dtype}; view the tensor as uint16 or uint32 first"
        )
    return array.view(np.uint16 if array.dtype.itemsize == 2 else np.uint32)


def combine(parts: Iterable[Fingerprint]) -> Fingerprint:
    """Combine fingerprints of disjoint parts (slices, tensors): lanes summed mod 2**64, in any order."""
    total0 = total1 = 0
    for lane0, lane1 in parts:
        total0 += lane0
        total1 += lane1
    return total0 % MODULUS, total1 % MODULUS


def to_hex(fingerprint: Fingerprint) -> str:
    """Format a fingerprint as 32 hexadecimal digits, lane 0 first."""
    return f"{fingerprint[0]:016x}{fingerprint[1]:016x}"
