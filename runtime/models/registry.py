"""Which architectures are served. One line per architecture; everything else about it is in its own module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headrace.runtime.checkpoint import CheckpointError
from headrace.runtime.models import (
    gemma,
    gemma2,
    gemma3,
    gemma3_vl,
    llama,
    llava,
    llava_onevision,
    mistral,
    mixtral,
    phi3,
    qwen2,
    qwen2_5_vl,
    qwen3,
    qwen3_moe,
    qwen3_vl,
)
from headrace.runtime.models.config import Fields, ModelConfig, check_refused, read_config


@dataclass(frozen=True, slots=True)
class Architecture:
    """`read` makes the config from the file's fields; `model` is the class built from it. `renames`: how names of
    tensors begin in older files, and how today. `own`: fields that others refuse and it reads."""

    read: Callable[[Fields], ModelConfig]
    model: type[llama.Llama]
    renames: tuple[tuple[str, str], ...] = ()
    own: frozenset[str] = frozenset()


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture(llama.read, llama.Llama),
    "MistralForCausalLM": Architecture(mistral.read, llama.Llama),
    "Qwen2ForCausalLM": Architecture(qwen2.read, llama.Llama),
    "Qwen3ForCausalLM": Architecture(qwen3.read, llama.Llama),
    gemma2.NAME: Architecture(gemma2.read, gemma.Gemma, own=gemma2.OWN),
    gemma3.NAME: Architecture(gemma3.read, gemma.Gemma, own=gemma3.OWN),
    gemma3_vl.NAME: Architecture(gemma3_vl.read, gemma3_vl.Gemma3VL, gemma3_vl.RENAMES, gemma3.OWN),
    llava_onevision.NAME: Architecture(
        llava_onevision.read, llava_onevision.LlavaOnevision, llava_onevision.RENAMES
    ),
    llava.NAME: Architecture(llava.read, llava.Llava, llava.RENAMES),
    mixtral.NAME: Architecture(mixtral.read, llama.Llama, own=mixtral.OWN),
    phi3.NAME: Architecture(phi3.read, llama.Llama),
    qwen3_moe.NAME: Architecture(qwen3_moe.read, llama.Llama, own=qwen3_moe.OWN),
    qwen2_5_vl.NAME: Architecture(qwen2_5_vl.read, qwen2_5_vl.Qwen25VL, qwen2_5_vl.RENAMES),
    qwen3_vl.NAME: Architecture(qwen3_vl.read, qwen3_vl.Qwen3VL),
}


def read_model_config(folder: Path) -> ModelConfig:
    """The config of the model in `folder`. Raises CheckpointError for everything that cannot be served."""
    name, fields = read_config(folder)
    known = ARCHITECTURES.get(name)
    if known is None:
        raise CheckpointError(
            f"config.json: architecture {name[:100]!r} is not supported (known: {', '.join(ARCHITECTURES)})"
        )
    check_refused(fields, known.own)
    return known.read(fields)


def model_class(config: ModelConfig) -> type[llama.Llama]:
    """The class that computes `config`."""
    return ARCHITECTURES[config.architecture].model


def older_names(config: ModelConfig) -> tuple[tuple[str, str], ...]:
    """How names of its tensors begin in older files, and how today."""
    return ARCHITECTURES[config.architecture].renames
