"""Makes the can of the embedded task: a unit cylinder along x, wrapped in a label drawn here.

    .venv/bin/python scripts/make_can.py

Writes `envs/vla_razor_envs/assets/can.glb`. The task scales it to its setup's size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh
from PIL import Image
from trimesh.visual.material import PBRMaterial
from trimesh.visual.texture import TextureVisuals

OUT = Path(__file__).parents[1] / "envs" / "vla_razor_envs" / "assets" / "can.glb"
SEGMENTS = 32
RED, WHITE, METAL = (228, 69, 80), (249, 249, 247), (225, 226, 228)
RIM, RIBBON, SWING = 0.06, 0.08, 0.02  # shares of the can's length: a rim, half the ribbon, the ribbon's wave


def label(width: int = 256, height: int = 128) -> Image.Image:
    """The label, unrolled: along x once around the can, along y from end to end; the rims are the bare metal."""
    around, along = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    colours = np.empty((height, width, 3), np.uint8)
    colours[:] = RED
    colours[abs(along - 0.5 - SWING * np.sin(4 * np.pi * around)) < RIBBON] = WHITE
    colours[np.minimum(along, 1 - along) < RIM] = METAL
    return Image.fromarray(colours)


def cylinder() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Vertices [V, 3], normals [V, 3], texture coordinates [V, 2] and triangles [T, 3] of a cylinder of radius 1 whose
    axis runs from x = -1 to 1. Side and ends share no vertices, so that the edges are sharp.
    """
    turn = np.linspace(0, 2 * np.pi, SEGMENTS + 1)
    circle = np.stack([np.zeros_like(turn), np.cos(turn), np.sin(turn)], axis=1)
    i = np.arange(SEGMENTS)
    low, high = i, i + SEGMENTS + 1
    axis = np.array([1, 0, 0])
    vertices = [circle - axis, circle + axis]
    normals = [circle, circle]
    coordinates = [np.stack([turn / (2 * np.pi), np.full_like(turn, end)], axis=1) for end in (0, 1)]
    triangles = [np.stack([low, low + 1, high], axis=1), np.stack([high, low + 1, high + 1], axis=1)]
    for end in (-1, 1):
        first = sum(map(len, vertices))
        vertices += [circle + end * axis, end * axis[None]]
        normals += [np.tile(end * axis, (SEGMENTS + 2, 1))]
        coordinates += [np.full((SEGMENTS + 2, 2), RIM / 2)]
        fan = np.stack([first + i, first + i + 1, np.full_like(i, first + SEGMENTS + 1)], axis=1)
        triangles += [fan if end > 0 else fan[:, ::-1]]
    return np.concatenate(vertices), np.concatenate(normals), np.concatenate(coordinates), np.concatenate(triangles)


def main() -> None:
    vertices, normals, coordinates, triangles = cylinder()
    material = PBRMaterial(baseColorTexture=label(), metallicFactor=0.0, roughnessFactor=0.8)
    visual = TextureVisuals(coordinates, material=material)
    mesh = trimesh.Trimesh(vertices, triangles, vertex_normals=normals, visual=visual, process=False)
    OUT.parent.mkdir(exist_ok=True)
    mesh.export(OUT)
    print(f"{OUT.name}: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
