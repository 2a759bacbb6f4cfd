"""What a place of execution offers: packed matrices, an op table, and one queue of steps. Knows no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from torch import Tensor

from headrace.graphs.inputs import StepInputs

T = TypeVar("T")
Reach = Any  # what each row of a step reads; made by `Ops.reach`, opaque to all but `Ops.attend` beside it


class Linear(Protocol):
    """A matrix W [out, in] and perhaps a bias b, ready to multiply with."""

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [T, in] -> x Wᵀ + b (+ residual [T, out], added before the one rounding)."""


class Ops(Protocol):
    """The ops of `kernels.reference`, each with the same meaning; attention in two parts.

    `reach` may look at the inputs on the host, once per step; `attend` runs in every layer and must not.
    """

    def resolve_tokens(self, token_ids: Tensor, slots: Tensor, last_tokens: Tensor) -> Tensor: ...

    def kv_cells(self, page_table: Tensor, slots: Tensor, positions: Tensor, page_size: int) -> Tensor: ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor: ...

    def silu_mul(self, x: Tensor) -> Tensor: ...

    def store_kv(
        self, keys: Tensor, values: Tensor, key_cells: Tensor, value_cells: Tensor, cells: Tensor
    ) -> None: ...

    def copy_pages(self, slab: Tensor, sources: Tensor, targets: Tensor) -> None: ...

    def reach(
        self,
        inputs: StepInputs,
        page_table: Tensor,
        page_size: int,
        window: int,
        mutual: Sequence[tuple[int, int]] = (),
    ) -> Reach:
        """Which cells each row of this step reads in layers of this window (0 = all).

        mutual: tokens [begin, end) of the step that read each other too, each range within one prefill row; the
        window holds for what lies before a token all the same."""

    def attend(
        self,
        query: Tensor,
        key_cells: Tensor,
        value_cells: Tensor,
        reach: Reach,
        scale: float,
        cap: float = 0.0,
    ) -> Tensor:
        """query [T, H, D] -> [T, H, D]; decode rows and prefill rows of the step at once. cap: scores x become
        cap * tanh(x / cap); 0: they stay."""


class Backend(Protocol):
    """Where a model runs."""

    @property
    def ops(self) -> Ops: ...

    def linear(self, weight: Tensor, bias: Tensor | None, keep: bool = False) -> Linear:
        """A matrix packed for this backend. `weight` [out, in] may be dropped by the caller afterwards. keep: it
        stays beside the packed form, as `weight`, for who reads it by itself."""

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run `work` after everything submitted before it."""

    def close(self) -> None:
        """Finish what was submitted and stop. Harmless when called twice."""
