"""Limit torch and numba to as many threads as fit, and never raise their own limits."""

from __future__ import annotations

import logging
import sys

from seedtune.numerics.machine import available_cores

log = logging.getLogger("seedtune")


def limit() -> None:
    """Limit the threads of the calling thread's work in numba, and in torch if it is loaded, to as many as fit.

    A lower limit set by the user stays.
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
