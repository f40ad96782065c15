"""How a run's rewards were computed, as recorded in its ledger: a mapping that engines fill (`EngineInfo.arithmetic`).

    products   "fma32/1", "bf16dot/1" or "library": the matrix products, with a version number for our own
    attention  "lanes32/1" or "library"
    device     "cpu", "cuda sm_90"
    sizes      of a GPU's key-value cache: the most rows in flight, and their positions
    library    if a library takes part: its name, its version, and what decides the order of its sums

With several kinds of engine, Ray workers have one such mapping for each kind, under "workers".  Weights do not depend
on any of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Entry = Mapping[str, Any]


def kind(entry: Entry) -> str:
    """Return the products without their version, as the setting ``products`` names them; "" if none is recorded."""
    return str(entry.get("products", "")).partition("/")[0]


def of_engine(entry: Entry, engine: str) -> Entry:
    """Return the part for one kind of engine; empty if it is missing."""
    workers: Mapping[str, Entry] | None = entry.get("workers")
    return entry if workers is None else workers.get(engine, {})


def summary(entry: Entry) -> str:
    """Format the whole entry on one line, for display."""
    if "workers" in entry:
        return "; ".join(f"{name}: {summary(part)}" for name, part in sorted(entry["workers"].items()))
    if not entry:
        return "not recorded"
    library = entry.get("library")
    by = "" if library is None else f", by {_library(library)}"
    sizes = entry.get("sizes")
    by += "" if sizes is None else f", {sizes['rows']} rows and {sizes['positions']} positions at most"
    return f"products {entry['products']}, attention {entry['attention']}, {entry['device']}{by}"


def _library(library: Entry) -> str:
    rest = (f"{name} {value}" for name, value in library.items() if name not in ("name", "version"))
    return " ".join(
        (f"{library['name']} {library['version']}", *(f"({details})" for details in (", ".join(rest),) if details))
    )


def same(one: Entry, other: Entry) -> bool:
    """Return whether both give equal rewards; only kinds of engine that both contain are compared."""
    if "workers" in one and "workers" in other:
        return all(one["workers"][name] == other["workers"][name] for name in {*one["workers"]} & {*other["workers"]})
    return one == other
