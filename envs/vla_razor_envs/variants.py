"""SimplerEnv's variants of the Google robot's scenes, which test whether a policy is robust to the change.

Visual matching shows the robot in four colours before a photograph. Variant aggregation renders everything, and changes
light, camera, table, background, distractors or cabinet. All numbers are the original's
(github.com/simpler-env/SimplerEnv, commit 4ab7178). A variant whose files are missing raises when it is built.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

from .google_setups import GOOGLE_PICK_CAN, START_QPOS
from .records import Lighting, MeshCan, Setup, Stage, UrdfCabinet

ROBOT = "vla_razor_google_robot"
STAGES = "data/hab2_bench_assets/stages"
MODELS = "data/custom/models"
TABLE_OFFSET = (1.6616, 3.0337, 0.0)  # of a stage, so that its table stands before the robot


@dataclass(frozen=True)
class Variant:
    """Fields of a setup with their new values; `photograph` says whether the photograph behind the scene stays."""

    changes: Mapping[str, Any]
    photograph: bool = False


def varied(setup: Setup, family: str, robot: str, name: str | None) -> Setup:
    """The setup with the changes of a variant of this task family and robot; unchanged where the name is None.

    Raises:
        ValueError: there is no variant of that name; the message lists the known ones.
    """
    if name is None:
        return setup
    known = VARIANTS.get((family, robot), {})
    if name not in list(known):  # whatever it is: a list cannot be looked up
        raise ValueError(f"variant is {name!r}; expected {'one of ' if known else ''}{', '.join(known) or None}")
    variant = known[name]
    return replace(setup, **{"photo": None, **variant.changes} if not variant.photograph else variant.changes)


# ---------------------------------------------------------------------- visual matching: the robot's colours

RECOLORED = {
    name: Variant({"agent": f"{ROBOT}_{name}"}, photograph=True)
    for name in ("recolored_tabletop_1", "recolored_tabletop_2", "recolored_cabinet_1")
}

# ---------------------------------------------------------------------- variant aggregation: pick a can


def _lights(*directional: tuple[tuple[float, float, float], float], shadow: float | None = None) -> Lighting:
    """Directional lights of a direction and a grey value each, over the original's usual ambient light."""
    return Lighting((0.3, 0.3, 0.3), tuple((direction, (grey, grey, grey)) for direction, grey in directional), shadow)


def _can_stage(name: str) -> Variant:
    return Variant({"table": Stage(f"{STAGES}/{name}.glb", (*TABLE_OFFSET, 1.0, 0.0, 0.0, 0.0), "can_variants")})


def _head(tilt: float) -> Variant:
    return Variant({"start_qpos": {**START_QPOS, "joint_head_tilt": tilt}})


def _distractors(**densities: float) -> Variant:
    things = [
        MeshCan(f"{MODELS}/{name}", density, 0.5, (0.0, 0.05), "distractors") for name, density in densities.items()
    ]
    return Variant({"distractors": tuple(things)})


CAN_VARIANTS = {
    "darker": Variant({"lighting": _lights(((1, 1, -1), 0.8), ((0, 0, -1), 0.8))}),
    "brighter": Variant({"lighting": _lights(((0, 0, -1), 3.6), ((-1, -0.5, -1), 1.3), ((1, 1, -1), 1.3))}),
    "camera_lowered": _head(0.9351361),
    "camera_raised": _head(0.6651361),
    "table_1": _can_stage("Baked_sc1_staging_objaverse_cabinet1_h870"),
    "table_2": _can_stage("Baked_sc1_staging_objaverse_cabinet2_h870"),
    "background_1": _can_stage("google_pick_coke_can_1_v4_alt_background"),
    "background_2": _can_stage("google_pick_coke_can_1_v4_alt_background_2"),
    "distractors": _distractors(opened_pepsi_can=50, apple=800, sponge=150, orange=800),
    "more_distractors": _distractors(
        opened_7up_can=50,
        opened_sprite_can=50,
        sponge=150,
        orange=800,
        opened_fanta_can=50,
        bridge_spoon_generated_modified=1200,
    ),
}

# ---------------------------------------------------------------------- variant aggregation: drawers


def _room(name: str, group: str, shift: tuple[float, float, float], turn: tuple[float, ...]) -> Stage:
    """A stage that is first turned, then shifted, then put as all are."""
    x, y, z = (a + b for a, b in zip(shift, TABLE_OFFSET, strict=True))
    return Stage(f"{STAGES}/{name}.glb", (x, y, z, *turn), group)


APARTMENT = _room("frl_apartment_stage_simple", "drawer_stage", (0, 0, 0), (1, 0, 0, 0))
BEDROOM = _room("modern_bedroom_no_roof", "drawer_backgrounds", (0.178, -2.235, 1.669), (0.007, 0, 0, -1))
OFFICE = _room("modern_office_no_roof", "drawer_backgrounds", (-0.192, -1.728, 1.48), (sqrt(0.5), 0, 0, -sqrt(0.5)))


def _drawers(number: str = "", stage: Stage = APARTMENT, grey: float = 1.0) -> Variant:
    """Another cabinet, in a room, under the original's usual light, seen from a grid of places."""
    return Variant(
        {
            "cabinet": UrdfCabinet(f"data/custom/mk_station{number}.urdf", "cabinets", stage),
            "lighting": _lights(((-0.2, 0, -1), grey), ((-1, 1, -0.05), 0.5), ((-1, -1, -0.05), 0.5), shadow=5.0),
            "cameras": (replace(GOOGLE_PICK_CAN.camera, shader="default"),),  # which alone shows shadows
            "robot_material": GOOGLE_PICK_CAN.robot_material,
            "stations": {
                f"{row}{column}": (x, y, 0.0)
                for row, y in zip("abc", (-0.2, 0.0, 0.2), strict=True)
                for column, x in enumerate((0.65, 0.75, 0.85))
            },
        }
    )


DRAWER_VARIANTS = {
    "plain": _drawers(),
    "darker": _drawers(grey=0.5),
    "brighter": _drawers(grey=2.0),
    "background_1": _drawers(stage=BEDROOM),
    "background_2": _drawers(stage=OFFICE),
    "cabinet_2": _drawers("2"),
    "cabinet_3": _drawers("3"),
}
VARIANTS: Mapping[tuple[str, str], Mapping[str, Variant]] = {
    ("pick_can", "google_robot"): {**RECOLORED, **CAN_VARIANTS},
    ("drawer", "google_robot"): {**RECOLORED, **DRAWER_VARIANTS},
}
