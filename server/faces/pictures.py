"""Pictures inside requests of the OpenAI shapes → `Picture`. Knows how they are named; opens and fetches none:
which addresses are taken is the Runtime's to say."""

from __future__ import annotations

import base64

from headrace.runtime.interface import Picture
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.fields import ImageUrl

SCHEMES = ("ftp", "file", "blob", "gs", "s3")


def picture(given: ImageUrl | str | None, detail: str | None, at: int, path: str) -> Picture:
    """The picture in front of character `at` of its message. path: the part it stands in. Raises WireError."""
    where = f"{path}.image_url"
    if given is None:
        raise WireError("missing_required_parameter", f"missing field: {where}", where)
    if isinstance(given, ImageUrl):
        url, detail, where = given.url, given.detail or detail, f"{where}.url"
    else:
        url = given
    if url[:5].lower() not in ("data:", "http:", "https"):
        # Decided here, by the first letters alone: nothing of this server can open what a client names so.
        scheme = url.partition(":")[0].lower()
        what = "addresses are never fetched here" if scheme in SCHEMES else "this is no picture"
        raise WireError(
            "invalid_value",
            f"{where}: {what}; send the picture itself as a data: URL, like data:image/png;base64,...",
            where,
        )
    return Picture(at, url, small=detail == "low", name=where)


def picture_url(shown: Picture) -> str:
    """The picture as its client may see it again: the data URL that it sent, or one made of its bytes."""
    if isinstance(shown.source, str):
        return shown.source
    kind = file_type(shown.source) or "image/png"
    return f"data:{kind};base64,{base64.b64encode(shown.source).decode()}"


def file_type(data: bytes) -> str | None:
    """The media type of a file that begins like a picture; no JSON does."""
    kinds = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"))
    return next((f"image/{kind}" for begins, kind in kinds if data.startswith(begins)), None)
