"""Muon: momentum whose matrices are made orthogonal before they are applied. Plain torch, matrices of one shape at once.

The iteration is that of Jordan et al. (2024), "Muon: an optimizer for hidden layers in neural networks".
"""

from __future__ import annotations

import torch
from torch import Tensor

COEFFICIENTS = (
    3.4445,
    -4.7750,
    2.0315,
)  # of the quintic that draws singular values to one, quickly and roughly
ITERATIONS = 5


def orthogonal(stack: Tensor) -> Tensor:
    """Every matrix of [count, rows, columns], rows <= columns, with its singular values near one. bfloat16."""
    a, b, c = COEFFICIENTS
    x = stack.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    return x


class Muon:
    """Steps matrices of one network; the rate is given with each step."""

    def __init__(self, matrices: list[Tensor], momentum: float = 0.95, decay: float = 0.04) -> None:
        self._momentum, self._decay = momentum, decay
        groups: dict[tuple[int, int], list[tuple[Tensor, bool]]] = {}
        for each in matrices:
            rows, columns = each.flatten(1).shape
            turned = rows > columns
            groups.setdefault((min(rows, columns), max(rows, columns)), []).append((each, turned))
        self._groups = list(groups.values())
        self._moving = [[torch.zeros_like(each) for each, _ in group] for group in self._groups]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Apply and clear the gradients."""
        for group, moving in zip(self._groups, self._moving, strict=True):
            gradients = [each.grad for each, _ in group]
            assert all(each is not None for each in gradients)
            found: list[Tensor] = [each for each in gradients if each is not None]
            torch._foreach_lerp_(moving, found, 1 - self._momentum)
            ahead = torch._foreach_lerp(found, moving, self._momentum)  # Nesterov's look
            flat = [
                x.flatten(1).mT if turned else x.flatten(1)
                for x, (_, turned) in zip(ahead, group, strict=True)
            ]
            steps = orthogonal(torch.stack(flat)).float()
            for update, (each, turned) in zip(steps, group, strict=True):
                rows, columns = each.flatten(1).shape
                update = (update.mT if turned else update).reshape(each.shape)
                each.mul_(1 - rate * self._decay).add_(update, alpha=-rate * max(1.0, rows / columns) ** 0.5)
                each.grad = None
