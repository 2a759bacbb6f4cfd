"""Weights on the GPU: from a checkpoint, or random ones of the same shapes for measuring without a download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.kernels.tilings import pays
from headrace.runtime.models.layers import Part

RANDOM_SCALE = 0.02  # the usual start of these architectures


@dataclass(frozen=True, slots=True)
class DeviceMatrix:
    """W [out, in], row after row, and perhaps a bias [out]: what the linear kernels and cuBLAS read."""

    weight: Tensor
    bias: Tensor | None

    def read_once(self, rows: int) -> bool:
        """Whether the few-row kernels are the faster way to multiply `rows` rows with it."""
        return pays(self.weight.shape[0], self.weight.shape[1], rows)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x Wᵀ + b (+ residual). Allocates: the engine's steps call kernels with `weight` and `bias` instead."""
        out = F.linear(x, self.weight, self.bias)
        return out if residual is None else out + residual


class HostParts(Protocol):
    """Where the numbers come from."""

    def tensor(self, parts: Sequence[Part]) -> Tensor: ...


class DeviceWeights:
    """A WeightSource that keeps everything on `device`; equal parts once, so that a tied head is the embedding."""

    def __init__(self, parts: HostParts, device: torch.device) -> None:
        self.parts = parts
        self.device = device
        self.bytes = 0
        self._kept: dict[tuple[str, ...], Tensor] = {}

    def tensor(self, parts: Sequence[Part]) -> Tensor:
        names = tuple(name for name, _ in parts)
        found = self._kept.get(names)
        if found is None:
            found = self._kept[names] = self.parts.tensor(parts).to(self.device)
            self.bytes += found.nbytes
        return found

    def linear(self, weight: Sequence[Part], bias: Sequence[Part] | None) -> DeviceMatrix:
        return DeviceMatrix(self.tensor(weight).flatten(1), None if bias is None else self.tensor(bias))


class RandomParts:
    """Normal numbers from a seed, made where they will live. Norm weights lie near one, as in trained models."""

    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int = 0) -> None:
        self.dtype = dtype
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def tensor(self, parts: Sequence[Part]) -> Tensor:
        shapes = [shape for _, shape in parts]
        whole = torch.empty(
            (sum(shape[0] for shape in shapes), *shapes[0][1:]), dtype=self.dtype, device=self.device
        )
        whole.normal_(0.0, RANDOM_SCALE, generator=self.generator)
        if whole.dim() == 1 and all(name.endswith("norm.weight") for name, _ in parts):
            whole.add_(1.0)
        return whole
