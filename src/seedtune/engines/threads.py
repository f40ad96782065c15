"""Lets torch and numba use as many threads as fit, and never more than they already would."""

from __future__ import annotations

import logging
import sys

from seedtune.numerics.machine import available_cores

log = logging.getLogger("seedtune")


def limit() -> None:
    """At most as many threads as fit for the calling thread's work in numba, and in torch if it is loaded.

    What a user has set lower stays.
    """
    import numba

    fit = available_cores.fitting()
    if fit.words is not None:
        log.info(fit.words)
    if numba.get_num_threads() > fit.threads:
        numba.set_num_threads(fit.threads)
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() > fit.threads:
        torch.set_num_threads(fit.threads)
