"""Importing this module runs Triton kernels in Triton's interpreter where there is no GPU.

Triton decides when a kernel is decorated, so this comes before the first kernel is imported."""

from __future__ import annotations

import os
import sys

import torch

ON_GPU = torch.cuda.is_available()

if not ON_GPU:
    assert "triton" not in sys.modules or os.environ.get("TRITON_INTERPRET") == "1", (
        "Triton was imported before"
    )
    os.environ["TRITON_INTERPRET"] = "1"
