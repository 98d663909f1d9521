"""Images to pixels and instructions to token ids, as OpenVLA was trained to see them.

After `processing_prismatic.py` of openvla c8f03f4. Where a checkpoint's `preprocessor_config.json` holds both `means`
and `tvf_normalize_params`, the latter win (they are rounded to bfloat16, and the model was trained with them).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from vla_razor.errors import UserError

PROMPT = "In: What action should the robot take to {}?\nOut:"
PROMPTS = {"template": PROMPT, "bare": "{}"}
"""How an instruction is put to the policy: as in its training, or, as a common evaluator does, alone."""
PREPROCESSOR_FILE = "preprocessor_config.json"
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class ImageTransform:
    """What one vision stack asks of an image: resize (one number: the shorter side), crop the centre, normalise."""

    resize: tuple[int, ...]
    crop: tuple[int, int]
    interpolation: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def pixels(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
        """The image at this stack's size."""
        height, width = image.shape[:2]
        size = self._size(width, height)
        if (width, height) != size:
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling(self.interpolation)))
        top, left = round((size[1] - self.crop[0]) / 2), round((size[0] - self.crop[1]) / 2)
        return image[top : top + self.crop[0], left : left + self.crop[1]]

    def normalize(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """From [0, 1] to what the stack was trained on."""
        return pixels.sub(torch.tensor(self.mean).view(3, 1, 1)).div_(torch.tensor(self.std).view(3, 1, 1))

    def _size(self, width: int, height: int) -> tuple[int, int]:
        if len(self.resize) == 2:
            return self.resize[1], self.resize[0]
        short = self.resize[0]
        if width <= height:
            return short, int(short * height / width)
        return int(short * width / height), short


@dataclass
class Processor:
    """A checkpoint's preprocessing. `settings` is its `preprocessor_config.json`; a tokenizer may be missing.

    `extra_files` (name to content) are the tokenizer's other files; they are kept for whoever loads the saved folder.
    """

    settings: dict[str, Any]
    tokenizer: Tokenizer | None = None
    bos_token_id: int = 1
    extra_files: dict[str, bytes] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.transforms = _transforms(self.settings)
        fill = self.settings.get("tvf_letterbox_fill")
        self.letterbox = tuple(fill) if self.settings.get("tvf_do_letterbox") and fill else None

    @classmethod
    def from_folder(cls, folder: Path, bos_token_id: int) -> "Processor":
        """Read a checkpoint folder. Raises `UserError` if it does not say how images are prepared."""
        path = folder / PREPROCESSOR_FILE
        if not path.is_file():
            raise UserError(f"{folder}: no {PREPROCESSOR_FILE}, which says how images are resized and normalised.")
        try:
            settings = json.loads(path.read_text())
            tokenizer = folder / TOKENIZER_FILE
            loaded = Tokenizer.from_file(str(tokenizer)) if tokenizer.is_file() else None
        except Exception as error:  # tokenizers raises bare Exception
            raise UserError(f"{folder}: cannot read the processor: {error}") from error
        names = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model")
        extra = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
        return cls(settings, loaded, bos_token_id, extra)

    def save(self, folder: Path) -> None:
        """Write what `from_folder` reads."""
        (folder / PREPROCESSOR_FILE).write_text(json.dumps(self.settings, indent=2) + "\n")
        if self.tokenizer is not None:
            self.tokenizer.save(str(folder / TOKENIZER_FILE))
        for name, content in self.extra_files.items():
            (folder / name).write_bytes(content)

    def pixel_values(self, images: Iterable[UInt8[np.ndarray, "H W 3"]]) -> Float[Tensor, "B C H W"]:
        """Pixels of uint8 RGB images of any sizes; three channels a vision stack. Raises `ValueError` for others."""
        squared = [self._checked(image) for image in images]
        resized: dict[tuple[Any, ...], Tensor] = {}
        stacks = []
        for transform in self.transforms:
            key = (transform.resize, transform.crop, transform.interpolation)
            if key not in resized:
                pixels = torch.from_numpy(np.stack([transform.pixels(image) for image in squared]))
                resized[key] = pixels.permute(0, 3, 1, 2).contiguous().float().div_(255)  # reordered as bytes
            stacks.append(transform.normalize(resized[key]))
        return torch.cat(stacks, dim=1)

    def shrunk(self, images: UInt8[np.ndarray, "B H W 3"]) -> UInt8[np.ndarray, "B h w 3"]:
        """Images larger than the model takes, shrunk to its size by averaging areas (Pillow's box filter; OpenCV's,
        which SimplerEnv's evaluators have, also weighs pixels on an edge); others, and those of a processor that keeps
        proportions, as they are.
        """
        sizes = {transform.resize for transform in self.transforms}
        size = sizes.pop() if len(sizes) == 1 and self.letterbox is None else ()
        if len(size) != 2 or len(images) == 0 or not (images.shape[1] > size[0] and images.shape[2] > size[1]):
            return images
        small = [Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BOX) for image in images]
        return np.stack([np.asarray(image) for image in small])

    def prompt_ids(self, instructions: Sequence[str], prompt: str = "template") -> list[list[int]]:
        """Token ids of the prompts, BOS first; `prompt` is a key of `PROMPTS`.

        Raises `UserError` if the checkpoint came without a tokenizer.
        """
        if self.tokenizer is None:
            raise UserError(f"The checkpoint has no {TOKENIZER_FILE}, so instructions cannot be turned into tokens.")
        prompts = [PROMPTS[prompt].format(instruction.lower()) for instruction in instructions]
        encoded = [encoding.ids for encoding in self.tokenizer.encode_batch(prompts)]
        return [ids if ids[:1] == [self.bos_token_id] else [self.bos_token_id, *ids] for ids in encoded]

    def _checked(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(f"expected uint8 images [H, W, 3], got {image.dtype} {list(image.shape)}")
        return image if self.letterbox is None else _pad_to_square(image, self.letterbox)


def _transforms(settings: dict[str, Any]) -> list[ImageTransform]:
    try:
        stages = zip(
            settings["tvf_resize_params"], settings["tvf_crop_params"], settings["tvf_normalize_params"], strict=True
        )
        return [
            ImageTransform(
                resize=(size,) if isinstance(size := resize["size"], int) else tuple(size),
                crop=tuple(crop["output_size"]),
                interpolation=int(resize["interpolation"]),
                mean=tuple(normalize["mean"]),
                std=tuple(normalize["std"]),
            )
            for resize, crop, normalize in stages
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{PREPROCESSOR_FILE} does not hold OpenVLA's tvf_* settings: {error!r}") from error


def _pad_to_square(image: UInt8[np.ndarray, "h w 3"], fill: tuple[int, ...]) -> UInt8[np.ndarray, "H W 3"]:
    """Centre the image on a square of the `fill` colour (up to the odd pixel, as the reference rounds it)."""
    height, width = image.shape[:2]
    top, left = (max(height, width) - height) // 2, (max(height, width) - width) // 2
    square = np.empty((height + 2 * top, width + 2 * left, 3), np.uint8)
    square[:] = fill
    square[top : top + height, left : left + width] = image
    return square
