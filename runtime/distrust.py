"""What becomes of the KV of a request that met a NaN. Knows who shares what; decides nobody's end."""

from __future__ import annotations

from headrace.runtime.gallery import Gallery
from headrace.runtime.prefix import PrefixTree
from headrace.runtime.request import Req


def distrust(req: Req, gallery: Gallery, tree: PrefixTree) -> None:
    """A row of `req` met a NaN, and any of its KV may hold it: chunks that sampled nothing were never seen
    to be finite. Nobody shares it from now on; those who share already fail by themselves if they meet it.
    Left in the cache it would fail every request with this prefix, and be kept because it is in demand."""
    req.spoilt = True
    req.landed_len = 0
    gallery.condemn(req)
    if req.lease is not None:
        tree.condemn(req.lease)
        req.lease = None
