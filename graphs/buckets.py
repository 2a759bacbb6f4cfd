"""Which row counts get a captured graph. Pure numbers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


def bucket_list(maximum: int) -> tuple[int, ...]:
    """Ascending row counts up to and including `maximum`: powers of two, then steps of 8, 16 and 32.

    The last bucket is the maximum itself, so that every allowed batch has one."""
    assert maximum >= 1
    found = {1, 2, 4} | set(range(8, 64, 8)) | set(range(64, 256, 16)) | set(range(256, maximum, 32))
    return (*sorted(count for count in found if count < maximum), maximum)


def bucket_for(count: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds `count` rows. `count` is at most the last bucket."""
    assert 1 <= count <= buckets[-1], f"{count} rows do not fit the largest bucket {buckets[-1]}"
    return buckets[bisect_left(buckets, count)]
