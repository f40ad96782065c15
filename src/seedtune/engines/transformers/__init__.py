"""The in-process engine on Hugging Face transformers: the whole population in one batch."""

import os

# torch and numba each bring a pool of OpenMP threads.  An idle pool spins for a while before it sleeps.
# Spinning for long costs far more than sleeping if another process wants the core: the thread that others wait
# for has then spent its share.  These few microseconds suffice between the passes of a layer.  The count is read
# when the pools are created, so it must be set before torch is imported, and a user's own setting stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
