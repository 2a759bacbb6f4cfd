"""Importing this module runs Triton kernels in Triton's interpreter where there is no GPU.

Triton decides when a kernel is decorated, so this comes before the first kernel is imported."""

from __future__ import annotations

import os
import sys
from types import FunctionType

import torch

ON_GPU = torch.cuda.is_available()


def patch_once() -> None:
    """Exchange Triton's language for the interpreter's once and for all.

    The interpreter does it anew for each call of each function, nested ones too, and that is most of the time that
    a small kernel takes. Nothing in these processes is compiled, so nobody wants the original back."""
    import triton.language
    from triton.runtime import interpreter

    scope = getattr(interpreter, "_LangPatchScope", None)
    if scope is None:
        return  # a version that does it in another way: slow, and right
    names = {"tl": triton.language, "core": triton.language.core}
    interpreter._patch_lang(FunctionType((lambda: None).__code__, names))
    interpreter._patch_lang = lambda _: scope()


if not ON_GPU:
    assert "triton" not in sys.modules or os.environ.get("TRITON_INTERPRET") == "1", (
        "Triton was imported before"
    )
    os.environ["TRITON_INTERPRET"] = "1"
    patch_once()
