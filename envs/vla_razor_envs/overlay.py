"""Visual matching, as SimplerEnv does it: a photograph of the real scene behind the simulated robot and objects."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@cache
def load_photo(path: Path, height: int, width: int) -> Tensor:
    """A photograph stretched to an image's size, uint8 [H, W, 3]: bit for bit the original's, which stretches fractions
    of one in double precision, stores single and cuts bytes off.
    """
    photo = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")) / 255).permute(2, 0, 1)[None]
    stretched = torch.nn.functional.interpolate(photo, (height, width), mode="bilinear", align_corners=False)
    return (stretched[0].permute(1, 2, 0).float() * 255).to(torch.uint8).contiguous()


def composite(image: Tensor, segmentation: Tensor, kept: Tensor, photo: Tensor) -> Tensor:
    """The rendered pixels of what is kept, and the photograph everywhere else.

    Args:
        image: rendered, uint8 [N, H, W, 3].
        segmentation: which thing each pixel shows, integer [N, H, W, 1]; 0 is the sky.
        kept: by thing, whether it is kept, bool [more than the largest id].
        photo: uint8 [N or 1, H, W, 3].

    Returns:
        uint8 [N, H, W, 3].
    """
    shown = kept.index_select(0, segmentation.flatten().int()).view(segmentation.shape[:3])
    seen = torch.empty_like(image, memory_format=torch.contiguous_format)
    for channel in range(3):  # several times faster than at once, where the innermost loop is over three numbers
        torch.where(shown, image[..., channel], photo[..., channel], out=seen[..., channel])
    return seen
