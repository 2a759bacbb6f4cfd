"""A model folder read and understood before any weight memory is touched."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from headrace.runtime.checkpoint import CheckpointError
from headrace.runtime.image_settings import ImageSettings, read_image_settings
from headrace.runtime.interface import ModelCard
from headrace.runtime.models.config import read_generation
from headrace.runtime.models.layers import NoOps, Outline
from headrace.runtime.models.llama import Llama
from headrace.runtime.models.registry import model_class, older_names, read_model_config
from headrace.runtime.weights import Checkpoint

log = logging.getLogger("headrace.engine")


class Blueprint:
    """What the folder says: `config` of the model, `generation` defaults, `build`, the class that computes it, and
    `outline`, every tensor that it needs. `checkpoint` is None where the weights are to be random.

    Raises CheckpointError for a folder that cannot be served."""

    def __init__(self, folder: Path, random_weights: bool = False) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder")
        self.config = read_model_config(self.folder)
        self.generation = read_generation(self.folder, self.config)
        if self.config.unread:
            log.warning("config.json: nobody reads %s", ", ".join(self.config.unread))
        self.build: type[Llama] = model_class(self.config)
        self.outline = Outline()
        self.build(self.config, self.outline, NoOps(), torch.float32)
        self.checkpoint: Checkpoint | None = None
        if not random_weights:
            self.checkpoint = Checkpoint(self.folder, older_names(self.config))
            self.checkpoint.match(self.outline.parts, self.config.spare)

    @property
    def parameters(self) -> int:
        """Numbers in the checkpoint; a tied head counts once."""
        return sum(torch.Size(shape).numel() for shape in self.outline.parts.values())

    @property
    def image_ratio(self) -> float:
        """About how many prompt tokens take as long in the decoder as a row of a picture takes in the tower; one
        for a model without eyes."""
        vision = self.config.vision
        if vision is None:
            return 1.0
        eyes = sum(
            torch.Size(shape).numel()
            for name, shape in self.outline.parts.items()
            if name.startswith(("model.visual.", "model.vision_tower."))
        )
        return vision.row_patches * eyes / max(1, self.parameters - eyes)

    def images(self, row_limit: int) -> ImageSettings | None:
        """How the model wants its pictures, at most `row_limit` rows each; None if it takes none."""
        if self.config.vision is None:
            return None
        found = read_image_settings(self.folder, self.config.vision, row_limit)
        if found is None:
            log.warning(
                "the folder has no preprocessor_config.json: this model could see, but takes no pictures"
            )
        return found

    def card(self, dtype: str, context_len: int, sees: bool = False) -> ModelCard:
        """What clients are told about the model."""
        return ModelCard(
            id=self.folder.name,
            architecture=self.config.architecture,
            parameters=self.parameters,
            dtype=dtype,
            context_len=context_len,
            vocab_size=self.config.vocab_size,
            sees=sees,
            created=int((self.folder / "config.json").stat().st_mtime),
        )
