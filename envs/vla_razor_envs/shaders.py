"""SAPIEN's shaders without environment maps.

An environment map lights a scene from all around. No scene here has one. Yet SAPIEN's shaders look it up several times
per pixel, and when a process first renders SAPIEN integrates a table for its reflections, which with a software
renderer is most of a process's start. A copy of its shaders without these lookups renders the same images.
"""

import re
import shutil
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import sapien
from mani_skill.render import PREBUILT_SHADER_CONFIGS, ShaderConfig

from .cache import cache_root

FORMATS = {
    "minimal": dict.fromkeys(("Color", "ColorRaw"), "r8g8b8a8unorm") | {"PositionSegmentation": "r16g16b16a16sint"},
    "default": dict.fromkeys(("Color", "ColorRaw", "PositionSegmentation"), "r32g32b32a32sfloat"),
}
"""ManiSkill's picture formats for its shaders of these names."""
LEFT_OUT = (
    (r"\n[^\n]*sampler2D samplerBRDFLUT;", ""),
    (r"texture\(samplerBRDFLUT, [^;]*\)\.xy", "vec2(0)"),
    (r"textureLod\(samplerEnvironment, [^;]*?\)\.rgb", "vec3(0)"),
)
"""Patterns in a shader's text, and their replacements."""


def use_shader(name: str) -> ShaderConfig:
    """ManiSkill's shader of that name, without environment maps, for the camera that is made next. Where the copy
    cannot be written it is ManiSkill's own.
    """
    for picture, kind in FORMATS[name].items():
        sapien.render.set_picture_format(picture, kind)
    known = PREBUILT_SHADER_CONFIGS[name]
    try:
        return replace(known, shader_pack=str(_folder() / name))
    except OSError:
        return known


def _folder() -> Path:
    """The copy of the shaders of the installed SAPIEN, made where there is none yet."""
    folder = cache_root() / "shaders" / version("sapien")
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=folder.parent))
        for name in ("common", *FORMATS):
            shutil.copytree(Path(sapien.__file__).parent / "vulkan_shader" / name, aside / name)
        for path in (path for path in aside.rglob("*") if path.is_file()):
            text = path.read_text()
            for found, instead in LEFT_OUT:
                text = re.sub(found, instead, text)
            path.write_text(text)
        try:
            aside.rename(folder)
        except OSError:
            shutil.rmtree(aside)
            if not folder.is_dir():  # or else another process was first
                raise
    return folder
