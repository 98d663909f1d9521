"""The copied shaders draw what SAPIEN's own draw, and are made once."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_razor_envs import single, task
from vla_razor_envs.setups import SETUPS

pytestmark = pytest.mark.slow


def picture(shader: str) -> np.ndarray:
    setup = SETUPS["drawer", "panda"]
    setup = replace(setup, cameras=(replace(setup.camera, shader=shader),))
    with closing(single.build("drawer", setup, (96, 128), "open_top_drawer", "cpu", 1)) as built:
        seen, _ = built.reset(options={"starts": [{"seed": 3}]})
        return np.array(seen["image"][0])


@pytest.mark.parametrize("shader", ["minimal", "default"])
def test_they_draw_the_same_pictures(shader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vla_razor_envs import shaders

    ours = picture(shader)

    def theirs(name: str) -> Any:
        shaders.use_shader(name)
        return shaders.PREBUILT_SHADER_CONFIGS[name]

    monkeypatch.setattr(task, "use_shader", theirs)
    np.testing.assert_array_equal(ours, picture(shader))
    assert ours.std() > 10


def test_the_copy_looks_nothing_up_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vla_razor_envs import shaders

    monkeypatch.setenv("VLA_RAZOR_CACHE", str(tmp_path))
    folder = Path(shaders.use_shader("minimal").shader_pack)
    texts = [path.read_text() for path in folder.parent.rglob("*.*")]
    assert sum("samplerEnvironment;" in text for text in texts) > 1
    assert not [text for text in texts if "samplerBRDFLUT" in text or "textureLod(samplerEnvironment" in text]
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert shaders.use_shader("minimal").shader_pack == str(folder)
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_where_nothing_can_be_written_sapiens_own_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vla_razor_envs import shaders

    (tmp_path / "file").touch()
    monkeypatch.setenv("VLA_RAZOR_CACHE", str(tmp_path / "file"))
    assert shaders.use_shader("default").shader_pack == "default"
