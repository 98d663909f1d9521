"""Makes envs/vla_razor_envs/assets/real2sim.json: which of the original's files the Google-robot tasks use.

    python scripts/make_asset_list.py CLONE     # of github.com/simpler-env/ManiSkill2_real2sim

The list is read off the tree of the pinned commit; a mesh brings the materials and textures that it names. Each file
has its SHA-256. Where the clone is partial and lacks a file, its git object id (SHA-1 over length and content) tells a
download as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

LIST = Path(__file__).parents[1] / "envs" / "vla_razor_envs" / "assets" / "real2sim.json"
REPOSITORY = "simpler-env/ManiSkill2_real2sim"
COMMIT = "ef7a4d4fdf4b69f2c2154db5b15b9ac8dfe10682"

ROBOT = "mani_skill2_real2sim/assets/descriptions/googlerobot_description/google_robot_meta_sim_fix_wheel_fix_fingertip"
PHOTOS, CUSTOM, STAGES = "data/real_inpainting", "data/custom", "data/hab2_bench_assets/stages"
CANS = ("opened_pepsi_can", "opened_7up_can", "opened_sprite_can", "opened_fanta_can")
CAN_STAGE = "google_pick_coke_can_1_v4"
GROUPS = {
    "tasks": [
        "LICENSE",
        f"{ROBOT}.urdf",
        f"{CUSTOM}/models/opened_coke_can/collision.obj",
        f"{CUSTOM}/models/opened_coke_can/textured.dae",
        f"{CUSTOM}/mk_station_recolor.urdf",
        f"{PHOTOS}/google_coke_can_real_eval_1.png",
        *(f"{PHOTOS}/open_drawer_{row}{column}.png" for row in "abc" for column in range(3)),
    ],
    "can_stage": [f"{STAGES}/{CAN_STAGE}.glb"],
    "recolored_robots": [
        f"{ROBOT}_recolor_{name}_visual_matching_{number}.urdf"
        for name, number in (("tabletop", 1), ("tabletop", 2), ("cabinet", 1))
    ],
    "can_variants": [
        f"{STAGES}/{name}.glb"
        for name in (
            f"{CAN_STAGE}_alt_background",
            f"{CAN_STAGE}_alt_background_2",
            "Baked_sc1_staging_objaverse_cabinet1_h870",
            "Baked_sc1_staging_objaverse_cabinet2_h870",
        )
    ],
    "distractors": [
        f"{CUSTOM}/models/{model}/{part}"
        for model in (*CANS, "apple", "orange", "sponge", "bridge_spoon_generated_modified")
        for part in ("collision.obj", "textured.dae")
    ],
    "cabinets": [f"{CUSTOM}/mk_station{number}.urdf" for number in ("", "2", "3")],
    "drawer_stage": [f"{STAGES}/frl_apartment_stage_simple.glb"],
    "drawer_backgrounds": [f"{STAGES}/{name}_no_roof.glb" for name in ("modern_bedroom", "modern_office")],
}
NAMED = {  # how a file of this kind names others
    ".urdf": r'filename="([^"]+)"',
    ".obj": r"^mtllib (.+?)\s*$",
    ".mtl": r"^\s*(?:map_\w+|norm|bump|disp) (.+?)\s*$",
    ".dae": r"<init_from>([^<]+\.\w+)</init_from>",
}


class Tree:
    """The pinned commit of a clone."""

    def __init__(self, clone: Path) -> None:
        self.clone = clone
        lines = self._git("ls-tree", "-r", COMMIT).decode().splitlines()
        self.objects = {line.split("\t")[1]: line.split()[2] for line in lines}

    def content(self, path: str) -> bytes | None:
        """A file's bytes, or None where the clone lacks them."""
        try:
            return self._git("cat-file", "blob", self.objects[path])
        except subprocess.CalledProcessError:
            return None

    def digest(self, path: str) -> str:
        content = self.content(path)
        return f"git:{self.objects[path]}" if content is None else f"sha256:{hashlib.sha256(content).hexdigest()}"

    def closure(self, paths: Iterable[str]) -> set[str]:
        """The paths and every file of the tree that they name, directly or not."""
        found: set[str] = set()
        pending = list(paths)
        while pending:
            path = PurePosixPath(pending.pop())
            found.add(str(path))
            pattern, content = NAMED.get(path.suffix), self.content(str(path))
            for name in re.findall(pattern, (content or b"").decode(), re.MULTILINE) if pattern else []:
                named = os.path.normpath(path.parent / name)
                if named in self.objects and named not in found:  # some materials are missing upstream too
                    pending.append(named)
        return found

    def _git(self, *arguments: str) -> bytes:
        environment = {**os.environ, "GIT_NO_LAZY_FETCH": "1"}
        command = ["git", "-C", str(self.clone), *arguments]
        return subprocess.run(command, capture_output=True, check=True, env=environment).stdout


def main() -> None:
    tree = Tree(Path(sys.argv[1]))
    groups: dict[str, dict[str, str]] = {}
    listed: set[str] = set()
    for group, paths in GROUPS.items():
        new = sorted(tree.closure(paths) - listed)
        groups[group] = {path: tree.digest(path) for path in new}
        listed |= set(new)
    document = {"repository": REPOSITORY, "commit": COMMIT, "groups": groups}
    LIST.write_text(json.dumps(document, indent=1) + "\n")
    print({group: len(files) for group, files in groups.items()}, LIST.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
