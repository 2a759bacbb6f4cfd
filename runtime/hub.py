"""From what the user named to a model folder on this disk. The only file that may use the network."""

from __future__ import annotations

import re
from pathlib import Path

# Only what our readers open: no pickled weights, no code.
_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt")
_HUB_ID = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?\Z")


class ModelNotFound(Exception):
    """The model cannot be had; the message says why in words for the person who started the server."""


def locate(model: str) -> Path:
    """The folder of `model`: a local path, or a hub id, which is downloaded once (with progress bars).

    Raises ModelNotFound. A local folder wins over a hub id of the same name."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelNotFound(f"{folder} is no model folder: it has no config.json")
        return folder
    if folder.is_file():
        raise ModelNotFound(f"{folder} is a file; a model is a folder in Hugging Face layout")
    if not _HUB_ID.match(model):
        raise ModelNotFound(f"there is no folder {model}, and it is no hub id (like Qwen/Qwen3-0.6B) either")
    # Imported here: a server on a local folder never loads a network client.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=list(_PATTERNS)))
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"the hub has no model {model} that you may read (a gated one needs `hf auth login`); "
            f"there is no folder of that name here either"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelNotFound(
            f"{model} is not on this disk and the hub cannot be reached; connect once, or name a model folder"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelNotFound(f"downloading {model} failed: {str(error)[:300]}") from error
