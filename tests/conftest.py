"""Decides, before anything imports triton, how its kernels run: compiled where there is a GPU, else interpreted."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
