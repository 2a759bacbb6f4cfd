"""What the tower is given, against transformers: bit for bit on Pillow, closely on torchvision."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from vision_rig import noise, processor, saved

from headrace.runtime.blueprint import Blueprint
from headrace.runtime.checkpoint import CheckpointError
from headrace.runtime.image_settings import read_image_settings
from headrace.runtime.image_slab import normal_pixels, normal_table
from headrace.runtime.images import read_picture
from headrace.runtime.models.patches import cut

SIZES = [
    (40, 24), (7, 90), (123, 61), (1, 1), (2, 1), (1, 200), (13, 27), (300, 300), (17, 8), (64, 64), (9, 511),
]  # fmt: skip


def patches(folder: Path, picture: PIL.Image.Image) -> torch.Tensor:
    """Ours, flat, as the tower cuts them."""
    vision = Blueprint(folder, random_weights=True).config.vision
    assert vision is not None
    settings = read_image_settings(folder, vision, 4096)
    assert settings is not None
    image = read_picture(saved(picture, "PNG"), settings, "")
    return cut(normal_pixels(image, normal_table(settings)), vision.patch, vision.merge, vision.temporal)


@pytest.mark.parametrize("size", SIZES)
def test_every_bit_is_that_of_the_processor(size: tuple[int, int], seeing: Callable[[str], Any]) -> None:
    folder = seeing("qwen3-vl").folder
    picture = PIL.Image.fromarray(noise(*size, seed=sum(size)))
    theirs = processor(folder)(images=[picture], return_tensors="np")["pixel_values"]
    assert np.array_equal(patches(folder, picture).numpy(), theirs)


@pytest.mark.parametrize("name", ["gemma3-vl", "llava"])
@pytest.mark.parametrize("size", SIZES)
def test_every_bit_of_squares(name: str, size: tuple[int, int], seeing: Callable[[str], Any]) -> None:
    """Stretched, or cut out of the middle."""
    folder = seeing(name).folder
    picture = PIL.Image.fromarray(noise(*size, seed=sum(size)))
    theirs = processor(folder)(images=[picture], return_tensors="np")["pixel_values"]
    vision = Blueprint(folder, random_weights=True).config.vision
    assert vision is not None
    settings = read_image_settings(folder, vision, 4096)
    assert settings is not None
    image = read_picture(saved(picture, "PNG"), settings, "", small=True)
    assert np.array_equal(normal_pixels(image, normal_table(settings)).numpy(), theirs[0])


@pytest.mark.parametrize("size", SIZES)
def test_every_bit_of_tiles(size: tuple[int, int], seeing: Callable[[str], Any]) -> None:
    """On the same canvas, cut alike; and fewer tiles where the rows of those would be too many."""
    folder = seeing("llava-onevision").folder
    picture = PIL.Image.fromarray(noise(*size, seed=sum(size)))
    theirs = processor(folder)(images=[picture], return_tensors="np")["pixel_values"][0]
    vision = Blueprint(folder, random_weights=True).config.vision
    assert vision is not None
    settings = read_image_settings(folder, vision, 4096)
    assert settings is not None
    image = read_picture(saved(picture, "PNG"), settings, "")
    ours = normal_pixels(image, normal_table(settings)).view(3, -1, 20, 20).transpose(0, 1)
    assert np.array_equal(ours.numpy(), theirs)
    few = read_image_settings(folder, vision, 30)
    assert few is not None and read_picture(saved(picture, "PNG"), few, "").rows <= 30
    assert read_picture(saved(picture, "PNG"), settings, "", small=True).rows == 26


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("llava-onevision", {"image_grid_pinpoints": [[20, 20]]}, "differs from that in config.json"),
        ("llava-onevision", {"size": {"height": 40, "width": 40}}, "not the square of image_size 20"),
        ("gemma3-vl", {"do_pan_and_scan": True}, "do_pan_and_scan true is not supported"),
        ("gemma3-vl", {"size": {"height": 32, "width": 30}}, "height and width of a square"),
        ("gemma3-vl", {"size": {"height": 64, "width": 64}}, "64 differs from image_size 32"),
        ("gemma3-vl", {"image_processor_type": "Qwen2VLImageProcessor"}, "does not fit this architecture"),
        ("llava", {"do_center_crop": False}, "not a shortest_edge that crop_size is cut from"),
        ("llava", {"size": {"shortest_edge": 10}}, "not a shortest_edge that crop_size is cut from"),
        ("llava", {"do_normalize": False}, "do_normalize false is not supported"),
    ],
)
def test_processing_that_is_not_understood_stops_the_start(
    name: str, change: dict[str, Any], why: str, seeing: Callable[[str], Any], tmp_path: Path
) -> None:
    folder = seeing(name).folder
    said = json.loads((folder / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**said, **change}))
    vision = Blueprint(folder, random_weights=True).config.vision
    assert vision is not None
    with pytest.raises(CheckpointError, match=why):
        read_image_settings(tmp_path, vision, 4096)


def test_a_limit_below_the_one_size_there_is_stops_the_start(seeing: Callable[[str], Any]) -> None:
    blueprint = Blueprint(seeing("gemma3-vl").folder)
    assert blueprint.images(16) is not None
    with pytest.raises(CheckpointError, match="takes 16 tokens of this model, and only 15 are allowed"):
        blueprint.images(15)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1"])
def test_every_mode(mode: str, seeing: Callable[[str], Any]) -> None:
    folder = seeing("qwen3-vl").folder
    seen = PIL.Image.fromarray(noise(48, 40, 2))
    if mode in ("RGBA", "LA"):
        seen.putalpha(PIL.Image.fromarray(noise(48, 40, 3)[..., 0]))
    picture = seen.convert(mode)
    theirs = processor(folder)(images=[picture], return_tensors="np")["pixel_values"]
    assert np.array_equal(patches(folder, picture).numpy(), theirs)


def test_settings_inside_of_a_processor_file(seeing: Callable[[str], Any], tmp_path: Path) -> None:
    """Newer files hold them as a part of `processor_config.json`."""
    folder = seeing("qwen3-vl").folder
    vision = Blueprint(folder).config.vision
    assert vision is not None
    alone = json.loads((folder / "preprocessor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": alone}))
    assert read_image_settings(tmp_path, vision, 64) == read_image_settings(folder, vision, 64)
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "Qwen3VLProcessor"}))
    assert read_image_settings(tmp_path, vision, 64) is None


if importlib.util.find_spec("torchvision") is not None:  # there is no build of it for a CPU alone

    @pytest.mark.parametrize("size", SIZES)
    def test_close_to_the_processor_on_torchvision(
        size: tuple[int, int], seeing: Callable[[str], Any]
    ) -> None:
        """It resizes by other arithmetic: a step of a byte's 256 here and there, and rarely more than two."""
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

        folder = seeing("qwen3-vl").folder
        said = json.loads((folder / "preprocessor_config.json").read_text())
        said.pop("image_processor_type")
        picture = PIL.Image.fromarray(noise(*size, seed=sum(size)))
        theirs = Qwen2VLImageProcessor(**said)(images=[picture], return_tensors="pt")["pixel_values"]
        ours = patches(folder, picture)
        assert ours.shape == theirs.shape
        byte = 1 / 255 / 0.25
        off = (ours - theirs).abs()
        assert off.mean() < 0.5 * byte and off.max() < 4 * byte
