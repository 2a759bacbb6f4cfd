"""What the Qwen towers share: patches in the order of their merging, and heads that turn by row and column."""

from __future__ import annotations

import torch
from torch import Tensor


def by_squares(values: Tensor, high: int, wide: int, merge: int) -> Tensor:
    """values [high x wide], line by line -> the same, merge x merge square by square."""
    return values.reshape(high // merge, merge, wide // merge, merge).transpose(1, 2).flatten()


def grid(high: int, wide: int, merge: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of each patch, square by square."""
    row = torch.arange(high, device=device)[:, None].expand(high, wide)
    column = torch.arange(wide, device=device)[None, :].expand(high, wide)
    return by_squares(row, high, wide, merge), by_squares(column, high, wide, merge)


def cut(pixels: Tensor, patch: int, merge: int, temporal: int) -> Tensor:
    """pixels [channels, height, width] -> [patches, channels x temporal x patch x patch], square by square. All
    `temporal` frames are the same still."""
    channels, height, width = pixels.shape
    found = pixels.view(
        channels, height // patch // merge, merge, patch, width // patch // merge, merge, patch
    )
    found = found.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5)
    found = found.expand(-1, -1, -1, -1, -1, temporal, -1, -1)
    return found.reshape((height // patch) * (width // patch), -1)


def turns(head_dim: int, theta: float, device: torch.device) -> Tensor:
    """How fast the pairs of half a head turn: one half goes by the row, the other by the column."""
    half = head_dim // 2
    return (1.0 / (theta ** (torch.arange(0, half, 2).float() / half))).to(device)


def rotation(row: Tensor, column: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [patches, head_dim] in float32."""
    angles = (torch.stack((row, column), 1).float()[..., None] * frequencies).flatten(1)
    angles = torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [heads, patches, size], its halves turned against each other; in float32, as the reference does."""
    half = x.shape[-1] // 2
    wide = x.float()
    back = torch.cat((-wide[..., half:], wide[..., :half]), -1)
    return (wide * cos + back * sin).to(x.dtype)
