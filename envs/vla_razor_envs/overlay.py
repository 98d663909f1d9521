"""Visual matching, as SimplerEnv does it: a photograph of the real scene behind the simulated robot and objects."""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor


@cache
def load_photo(path: Path, height: int, width: int) -> Tensor:
    """A photograph stretched to an image's size, uint8 [H, W, 3], bit for bit as in the original: that resizes values
    in [0, 1] in double precision, stores them in single precision, and truncates to bytes.
    """
    photo = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")) / 255).permute(2, 0, 1)[None]
    stretched = torch.nn.functional.interpolate(photo, (height, width), mode="bilinear", align_corners=False)
    return (stretched[0].permute(1, 2, 0).float() * 255).to(torch.uint8).contiguous()


def composite(image: Tensor, things: Tensor, kept: Tensor, photo: Tensor) -> Tensor:
    """The rendered pixels of what is kept, and the photograph everywhere else.

    Args:
        image: rendered, red, green, blue and alpha, uint8 [N, H, W, 4].
        things: the number of the thing that each pixel shows, integer [N, H, W]; 0 is the sky.
        kept: for each number whether its thing is kept, bool [256].
        photo: uint8 [N or 1, H, W, 3].

    Returns:
        uint8 [N, H, W, 3].
    """
    if image.is_cuda:
        return torch.where(kept[things.int()][..., None], image[..., :3], photo)
    seen = photo.expand(len(image), -1, -1, -1).clone()
    shown = kept.numpy() * np.uint8(255)
    for rendered, shows, behind in zip(image.numpy(), things.numpy(), seen.numpy(), strict=True):
        mask = cv2.LUT(shows.astype(np.uint8), shown)
        cv2.copyTo(cv2.cvtColor(rendered, cv2.COLOR_RGBA2RGB), mask, behind)
    return seen
