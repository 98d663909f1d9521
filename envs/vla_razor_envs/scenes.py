"""Builds what the records describe: robots, tables, cans, cabinets, lights."""

# ManiSkill's and SAPIEN's annotations are narrower than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Collection
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np
import sapien
from mani_skill.utils import sapien_utils
from mani_skill.utils.structs import Actor, Articulation

from .assets import asset_root, has
from .records import BoxCabinet, BoxTable, CylinderCan, DrawerSetup, Lighting, MeshCan, PickCanSetup, Stage, UrdfCabinet
from .setups import DRAWERS

PACKAGED = Path(__file__).with_name("assets")
WOOD, FACE, METAL = (0.58, 0.44, 0.30), (0.82, 0.74, 0.60), (0.16, 0.17, 0.19)
TOWARDS_ROBOT = [0.0, 0.0, 0.0, 1.0]  # wxyz: half a turn of yaw; SAPIEN's prismatic joints slide along local x
Y_UP = [0.5**0.5, 0.5**0.5, 0.0, 0.0]  # wxyz: turns the y axis of a GLB scene up
FIXED_BIT = 30  # marks bodies that never move, so that PhysX does not solve their contacts with each other
MESH_CONTACT_OFFSET = 0.002  # metres: SAPIEN 2's for a triangle mesh


def material(rgb: tuple[float, float, float]) -> sapien.render.RenderMaterial:
    """A matt material of one colour."""
    return sapien.render.RenderMaterial(base_color=(*rgb, 1), roughness=0.8, specular=0.1)


def light(scene: Any, lighting: Lighting) -> None:
    """Lights the scene."""
    scene.set_ambient_light(lighting.ambient)
    for number, (direction, colour) in enumerate(lighting.directional):
        casts = number == 0 and lighting.shadow is not None
        scene.add_directional_light(direction, colour, shadow=casts, shadow_scale=lighting.shadow or 0.0)


def room(scene: Any, floor_z: float) -> Actor:
    """Floor and two walls, in metres; returns the floor, the only one of them with a collision shape."""
    walls = scene.create_actor_builder()
    walls.add_box_visual(sapien.Pose([2.0, 0, 1.0]), [0.02, 3, 2], material((0.72, 0.75, 0.76)))
    walls.add_box_visual(sapien.Pose([0.5, -2.0, 1.0]), [3, 0.02, 2], material((0.66, 0.70, 0.72)))
    walls.initial_pose = sapien.Pose()
    walls.build_static("walls")
    floor = scene.create_actor_builder()
    floor.add_box_collision(half_size=[3, 3, 0.05])
    floor.add_box_visual(half_size=[3, 3, 0.05], material=material((0.45, 0.42, 0.38)))
    floor.initial_pose = sapien.Pose([0, 0, floor_z - 0.05])
    return floor.build_static("floor")


def polish(robot: Articulation, specular: float, roughness: float) -> None:
    """Gives all of the robot's visual shapes the same specular share and roughness."""
    for link in robot.links:
        for each in link._objs:
            for component in each.entity.components:
                if isinstance(component, sapien.render.RenderBodyComponent):
                    for part in (part for shape in component.render_shapes for part in shape.parts):
                        part.material.specular, part.material.roughness = specular, roughness


# ---------------------------------------------------------------------- robots


def load_robot(agent: Any, initial_pose: sapien.Pose | None) -> Any:
    """Reads an agent's URDF file into an articulation builder, as ManiSkill does, for the agent to change and build."""
    loader = agent.scene.create_urdf_loader()
    loader.name = agent.uid
    loader.fix_root_link = agent.fix_root_link
    loader.load_multiple_collisions_from_file = agent.load_multiple_collisions
    sapien_utils.apply_urdf_config(loader, sapien_utils.parse_urdf_config(agent.urdf_config))
    builder = loader.parse(agent.urdf_path)["articulation_builders"][0]
    builder.initial_pose = initial_pose
    return builder


def leave_out_frames(builder: Any, needed: Collection[str]) -> None:
    """Leaves out links without any shape that are fixed to another link and carry none, except the `needed` ones. PhysX
    would solve them with the rest at every iteration of every step.
    """
    kept: list[Any] = []
    for link in reversed(builder.link_builders):  # children come after their parents
        bare = link.joint_record.joint_type == "fixed" and not (link.collision_records or link.visual_records)
        if not bare or link.name in needed or any(other.parent is link for other in kept):
            kept.insert(0, link)
    for index, link in enumerate(kept):
        link.index = index
    builder.link_builders = kept


# ---------------------------------------------------------------------- what the can stands on


@singledispatch
def build_table(table: Any, scene: Any) -> list[Actor]:
    """Builds the table of a record, and returns what the can may touch besides the robot."""
    raise NotImplementedError(type(table))


@build_table.register
def _(table: BoxTable, scene: Any) -> list[Actor]:
    x, y, top = table.top
    floor = room(scene, floor_z=top - 0.8)
    builder = scene.create_actor_builder()
    builder.add_box_collision(half_size=table.half_size)
    builder.add_box_visual(half_size=table.half_size, material=material((0.62, 0.48, 0.34)))
    builder.initial_pose = sapien.Pose([x, y, top - table.half_size[2]])
    return [builder.build_static("table"), floor]


@build_table.register
def _(table: Stage, scene: Any) -> list[Actor]:
    builder = scene.create_actor_builder()
    if table.stand_in is not None and not has(table.assets):  # its mesh has not been downloaded
        path, pose = PACKAGED / str(table.stand_in), sapien.Pose()
        builder.initial_pose = pose
        builder.add_visual_from_file(str(path), material=material((0.62, 0.48, 0.34)))
    else:
        path, pose = stage_file(table), sapien.Pose(q=Y_UP)
        builder.initial_pose = sapien.Pose(table.pose[:3], table.pose[3:])
        builder.add_visual_from_file(str(path), pose)
    builder.add_nonconvex_collision_from_file(str(path), pose)
    arena = builder.build_static("arena")
    for body in arena._bodies:
        for shape in body.collision_shapes:
            shape.contact_offset = MESH_CONTACT_OFFSET
    arena.set_collision_group_bit(2, FIXED_BIT, 1)
    return [arena]


def stage_file(stage: Stage) -> Path:
    """A stage's mesh. AssetsUnusable where it has not been downloaded."""
    return asset_root(stage.assets) / stage.file


# ---------------------------------------------------------------------- cans


@singledispatch
def build_can(can: Any, scene: Any, setup: PickCanSetup, name: str = "can") -> Actor:
    """Builds the can, or another thing, of a record."""
    raise NotImplementedError(type(can))


@build_can.register
def _(can: CylinderCan, scene: Any, setup: PickCanSetup, name: str = "can") -> Actor:
    half = can.length / 2
    builder = scene.create_actor_builder()
    surface = sapien.physx.PhysxMaterial(can.friction, can.friction, 0)
    density = can.mass / (np.pi * can.radius**2 * can.length)
    builder.add_cylinder_collision(radius=can.radius, half_length=half, material=surface, density=density)
    # A unit cylinder with a label, made by scripts/make_can.py.
    builder.add_visual_from_file(str(PACKAGED / "can.glb"), scale=[half, can.radius, can.radius])
    builder.initial_pose = sapien.Pose([0.5, 0, setup.table_top + half])
    return _damped(builder.build(name), can.damping)


@build_can.register
def _(can: MeshCan, scene: Any, setup: PickCanSetup, name: str = "can") -> Actor:
    folder = asset_root(can.assets) / can.folder
    builder = scene.create_actor_builder()
    surface = sapien.physx.PhysxMaterial(can.friction, can.friction, 0)
    builder.add_multiple_convex_collisions_from_file(
        str(folder / "collision.obj"), material=surface, density=can.density
    )
    builder.add_visual_from_file(str(folder / "textured.dae"))
    builder.initial_pose = sapien.Pose([*map(np.mean, (setup.area_x, setup.area_y)), setup.table_top + 0.5])
    return _damped(builder.build(name), can.damping)


def _damped(can: Actor, damping: tuple[float, float]) -> Actor:
    can.set_linear_damping(damping[0])
    can.set_angular_damping(damping[1])
    return can


# ---------------------------------------------------------------------- cabinets


@singledispatch
def build_cabinet(cabinet: Any, scene: Any, setup: DrawerSetup) -> Articulation:
    """Builds the cabinet of a record, and what stands around it; its joints are named after the drawers."""
    raise NotImplementedError(type(cabinet))


@build_cabinet.register
def _(cabinet: UrdfCabinet, scene: Any, setup: DrawerSetup) -> Articulation:
    builder = scene.create_actor_builder()
    builder.initial_pose = sapien.Pose()
    if cabinet.room:
        builder.initial_pose = sapien.Pose(cabinet.room.pose[:3], cabinet.room.pose[3:])
        builder.add_visual_from_file(str(stage_file(cabinet.room)), sapien.Pose(q=Y_UP))
    else:
        white = sapien.render.RenderMaterial(base_color=(1, 1, 1, 1))
        builder.add_box_visual(half_size=[10, 10, setup.cabinet_pose[2]], material=white)
    builder.build_static("room")
    loader = scene.create_urdf_loader()
    loader.name = "cabinet"
    loader.fix_root_link = True
    builder = loader.parse(str(asset_root(cabinet.assets) / cabinet.file))["articulation_builders"][0]
    builder.initial_pose = sapien.Pose(setup.cabinet_pose)
    built = builder.build("cabinet", fix_root_link=True)
    for joint in built.active_joints:
        joint.set_friction(setup.friction)
        joint.set_drive_properties(0, setup.damping)
    return built


@build_cabinet.register
def _(cabinet: BoxCabinet, scene: Any, setup: DrawerSetup) -> Articulation:
    room(scene, floor_z=0.0)
    builder = scene.create_articulation_builder()
    builder.disable_self_collisions = True  # the joints hold the drawers where they run
    body = builder.create_link_builder()
    body.set_name("body")
    # Sides, back, top and plinth; x = 0 is the drawers' front plane, +x leads into the cabinet.
    (depth, width, _), (thick, half_width, half_height) = cabinet.size, cabinet.panel
    top, bottom, wall = max(setup.drawer_z) + half_height + 0.005, min(setup.drawer_z) - half_height - 0.005, 0.01
    middle, tall = (top + bottom) / 2, (top - bottom) / 2
    for centre, half in (
        ([depth / 2, width / 2 + wall, middle], [depth / 2, wall, tall]),
        ([depth / 2, -width / 2 - wall, middle], [depth / 2, wall, tall]),
        ([depth - wall, 0, middle], [wall, width / 2, tall]),
        ([depth / 2, 0, top + wall], [depth / 2, width / 2 + 2 * wall, wall]),
        ([depth / 2, 0, bottom / 2], [depth / 2, width / 2 + 2 * wall, bottom / 2]),
    ):
        body.add_box_collision(sapien.Pose(centre), half)
        body.add_box_visual(sapien.Pose(centre), half, material(WOOD))
    # A drawer's front, its handle on two posts, and the floor and sides of its box, which nothing collides with.
    bar_x, (bar_thick, bar_width, bar_height) = -cabinet.handle_gap, cabinet.handle
    boxes = [
        ([thick, 0, 0], [thick, half_width, half_height], FACE, True),
        ([bar_x, 0, 0], [bar_thick, bar_width, bar_height], METAL, True),
        ([bar_x / 2, 0, bar_height - 0.006], [-bar_x / 2, 0.006, 0.006], METAL, True),
        ([bar_x / 2, 0, 0.006 - bar_height], [-bar_x / 2, 0.006, 0.006], METAL, True),
        ([0.14, 0, -half_height + 0.01], [0.13, half_width - 0.01, 0.004], WOOD, False),
        ([0.14, half_width - 0.012, -0.01], [0.13, 0.004, half_height - 0.02], WOOD, False),
        ([0.14, -half_width + 0.012, -0.01], [0.13, 0.004, half_height - 0.02], WOOD, False),
    ]
    for name, z in zip(DRAWERS, setup.drawer_z, strict=True):
        drawer = builder.create_link_builder(body)
        drawer.set_name(name)
        drawer.set_joint_name(f"{name}_joint")
        pose = sapien.Pose([0, 0, z], TOWARDS_ROBOT)
        drawer.set_joint_properties(
            "prismatic", [[0, cabinet.travel]], pose, sapien.Pose(q=TOWARDS_ROBOT), setup.friction, setup.damping
        )
        for centre, half, colour, solid in boxes:
            drawer.add_box_visual(sapien.Pose(centre), half, material(colour))
            if solid:
                drawer.add_box_collision(sapien.Pose(centre), half, density=400)
    builder.initial_pose = sapien.Pose(setup.cabinet_pose)
    return builder.build("cabinet", fix_root_link=True)
