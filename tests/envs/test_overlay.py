"""The photograph behind the robot: by hand, and against images that the original composed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vla_razor_envs.assets import asset_root
from vla_razor_envs.overlay import composite, load_photo

PICTURES = ("reset", "mid", "end")


def test_kept_things_stay_and_the_rest_is_the_photograph():
    image = torch.full((2, 1, 4, 4), 10, dtype=torch.uint8)
    photo = torch.full((1, 1, 4, 3), 200, dtype=torch.uint8)
    segmentation = torch.tensor([[0, 1, 2, 3], [3, 3, 0, 1]], dtype=torch.int16).reshape(2, 1, 4)
    kept = torch.arange(256) >= 2
    seen = composite(image, segmentation, kept, photo)
    assert seen.dtype == torch.uint8
    assert seen[..., 0].tolist() == [[[200, 200, 10, 10]], [[10, 10, 200, 200]]]


def test_each_scene_has_its_photograph():
    image = torch.zeros(2, 1, 1, 4, dtype=torch.uint8)
    photos = torch.tensor([[[[1, 2, 3]]], [[[4, 5, 6]]]], dtype=torch.uint8)
    seen = composite(image, torch.zeros(2, 1, 1, dtype=torch.int16), torch.zeros(256, dtype=torch.bool), photos)
    assert seen.tolist() == photos.tolist()


def test_a_photograph_is_stretched_to_the_image(tmp_path: Path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)).save(path)
    photo = load_photo(path, 3, 4)
    assert photo.shape == (3, 4, 3)
    assert photo[:, 0].tolist() == [[255, 0, 0]] * 3
    assert photo[:, 3].tolist() == [[0, 0, 255]] * 3
    assert photo[0, 1].tolist() == [191, 0, 63]  # three quarters of the one, one of the other, cut to bytes


@pytest.mark.parametrize("when", PICTURES)
def test_the_original_composed_the_same(shared: Path, when: str):
    folder = shared / "traces"
    stems = sorted(path.name.removesuffix("_rgb.png") for path in folder.glob(f"*__{when}_rgb.png"))
    assert stems
    for stem in stems:
        trace = np.load(folder / f"{stem.split('__')[0]}.npz")
        names = json.loads(str(trace["init_segmentation_id_names"]))
        rgb, raw, segmentation = (
            torch.from_numpy(picture(folder / f"{stem}_{kind}.png")) for kind in ("rgb", "raw", "seg")
        )
        kept = torch.tensor([names.get(str(number), "arena") != "arena" for number in range(256)])
        photo = load_photo(asset_root() / "data" / "real_inpainting" / str(trace["init_overlay"]), *raw.shape[:2])
        seen = composite(torch.nn.functional.pad(raw, (0, 1))[None], segmentation[None], kept, photo[None])[0]
        assert torch.equal(seen, rgb), f"{stem}: {(seen != rgb).any(2).float().mean():.4%} of the pixels differ"


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).copy()
