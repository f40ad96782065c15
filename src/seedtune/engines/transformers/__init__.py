"""The in-process engine on Hugging Face transformers: the whole population in one batch."""

import os

# torch and numba each bring a pool of OpenMP threads.  An idle pool spins for a while before it sleeps, and while it
# spins the other one waits for its core.  This bounds the spinning to some tens of microseconds; it is read when the
# pools are made, so it must be set before torch is imported, and a user's own choice stands.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
