"""Forward and inverse kinematics of many arms at once: what SAPIEN's Pinocchio solves for one on a CPU.

ManiSkill's own on a GPU, pytorch_kinematics, uses another iteration, clamps to the joint limits and keeps its chain in
float32. It would reach targets that Pinocchio misses, and the arm would move where on a CPU it stays. So the iteration
here is Pinocchio's closed loop, in float64 and few tensor operations (Corke, Robotics, Vision and Control, section 8;
Selig, Geometric Fundamentals of Robotics, for the derivative of the logarithm). Poses are [N, 7]: x, y, z, qw, qx, qy,
qz, metres and unit quaternions, in the frame of the chain's base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from .geometry import rotate

TINY = 1e-6  # radians: below it the coefficients of the logarithm's derivative no longer change


@dataclass(frozen=True)
class Iteration:
    """Constants of the closed loop: the norm of the error (metres and radians) at which a target is reached, the
    number of steps before it is given up, the share of the error that a step takes away, and the damping.
    """

    tolerance: float = 1e-4
    steps: int = 100
    step: float = 0.1
    damping: float = 1e-6


@dataclass(frozen=True)
class Chain:
    """The revolute joints between the base and the end effector, by name, with the transforms between them.

    Joint i turns its frame by `constant[i] + cosine[i] cos(q) + sine[i] sin(q)` ([J, 4, 4] each, the fixed transform
    from the frame of the joint before included); `tip` [4, 4] leads from the last joint's frame to the end effector.
    """

    joints: tuple[str, ...]
    constant: Tensor
    cosine: Tensor
    sine: Tensor
    axes: Tensor
    tip: Tensor

    @classmethod
    def from_urdf(cls, path: str | Path, end_link: str, device: torch.device | str = "cpu") -> Chain:
        """Reads the chain that ends at `end_link`; ValueError where the file has no such link, or where a joint of
        the chain neither is fixed nor turns.
        """
        joints = {_attribute(joint, "child", "link"): joint for joint in ElementTree.parse(path).iter("joint")}
        if end_link not in joints:
            raise ValueError(f"{path} has no joint that leads to a link {end_link!r}; known: {', '.join(joints)}")
        ancestors, link = [], end_link
        while link in joints:
            ancestors.append(joints[link])
            link = _attribute(joints[link], "parent", "link")
        fixed, names, offsets, axes = torch.eye(4, dtype=torch.float64), [], [], []
        for joint in reversed(ancestors):
            fixed = fixed @ _origin(joint)
            if joint.get("type") in ("revolute", "continuous"):
                names.append(str(joint.get("name")))
                offsets.append(fixed)
                axes.append(_numbers(_attribute(joint, "axis", "xyz")))
                fixed = torch.eye(4, dtype=torch.float64)
            elif joint.get("type") != "fixed":
                raise ValueError(
                    f"joint {joint.get('name')!r} of {path} is {joint.get('type')}; expected a revolute one"
                )
        axis = torch.nn.functional.normalize(torch.stack(axes), dim=1)
        # Rodrigues: R = a a' + cos(q) (1 - a a') + sin(q) [a].
        along, turn, offset = axis[:, :, None] * axis[:, None], cross(axis), torch.stack(offsets)
        homogeneous = torch.zeros(3, len(names), 4, 4, dtype=torch.float64)
        homogeneous[:, :, :3, :3] = torch.stack([along, torch.eye(3, dtype=torch.float64) - along, turn])
        homogeneous[0, :, 3, 3] = 1
        constant, cosine, sine = offset @ homogeneous
        return cls(tuple(names), *(part.to(device) for part in (constant, cosine, sine, axis, fixed)))

    def frames(self, qpos: Tensor) -> Tensor:
        """The joints' frames [N, J, 4, 4] at joint positions [N, J], radians."""
        angle = qpos.double()[..., None, None]
        steps = self.constant + angle.cos() * self.cosine + angle.sin() * self.sine
        frames = [steps[:, 0]]
        for joint in range(1, len(self.joints)):
            frames.append(frames[-1] @ steps[:, joint])
        return torch.stack(frames, 1)

    def jacobian(self, frames: Tensor) -> Tensor:
        """The motion [N, 6, J] of the last joint's frame, seen from itself, for a unit of each joint's speed: metres
        above radians.
        """
        last = frames[:, -1]
        axes = (frames[..., :3, :3] @ self.axes[..., None])[..., 0]
        arms = last[:, None, :3, 3] - frames[..., :3, 3]
        back = last[:, :3, :3]
        return torch.cat([torch.linalg.cross(axes, arms) @ back, axes @ back], dim=2).mT


class BatchedSolver:
    """Solves for the moving joints of N articulations at once, so that their link `link` takes its target pose.

    Args:
        urdf: file that describes the articulation.
        joints: names of the articulation's active joints, in its order.
        moving: the columns of the joints that may move; those between the base and the link are among them.
        link: the end effector.
        iteration: constants of the loop.
        device: where the poses will be.
    """

    def __init__(
        self,
        urdf: str | Path,
        joints: Sequence[str],
        moving: Sequence[int],
        link: str,
        iteration: Iteration,
        device: torch.device | str,
    ) -> None:
        self.chain, self.iteration, self.moving = Chain.from_urdf(urdf, link, device), iteration, list(moving)
        self.columns = [list(joints).index(name) for name in self.chain.joints]
        if still := set(self.columns) - set(self.moving):
            raise ValueError(f"{link} hangs on {[joints[column] for column in sorted(still)]}, which may not move")

    def __call__(self, qpos: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [N, moving] of the moving joints, and which targets are reached, bool [N]; where one is not, the
        joints stay. `qpos` [N, J] are the positions of all joints, `target` [N, 7] poses in the base frame.
        """
        solution = qpos.double()
        found, reached = inverse_kinematics(self.chain, target, solution[:, self.columns], self.iteration)
        solution = solution.clone()
        solution[:, self.columns] = found
        return solution[:, self.moving], reached


def inverse_kinematics(
    chain: Chain, target: Tensor, start: Tensor, iteration: Iteration = Iteration()
) -> tuple[Tensor, Tensor]:
    """Joint positions that bring the end effector to its target, from the start; the joints' limits are ignored.

    Args:
        chain: the arm.
        target: poses [N, 7] of the end effector in the base frame.
        start: joint positions [N, J], radians.
        iteration: constants of the loop.

    Returns:
        Joint positions [N, J] float64, the start's where the target is not reached, and which are reached, bool [N].
    """
    goal = matrices(target) @ torch.linalg.inv(chain.tip)
    qpos = start.double()
    reached = torch.zeros(len(qpos), dtype=torch.bool, device=qpos.device)
    for _ in range(iteration.steps + 1):  # one look more than there are steps: the last step may have reached it
        frames = chain.frames(qpos)
        error = logarithm(invert(frames[:, -1]) @ goal)
        reached = reached | (error.norm(dim=1) < iteration.tolerance)
        if reached.all():
            break
        # A damped least-squares step. The error is a logarithm of poses, so its derivative by the joints is the chain's
        # Jacobian seen through the logarithm's own. Damping keeps the step finite where the arm is stretched out.
        jacobian = left_jacobian_inverse(error) @ chain.jacobian(frames)
        damped = jacobian @ jacobian.mT + iteration.damping * torch.eye(6, dtype=error.dtype, device=error.device)
        factor = torch.linalg.cholesky_ex(damped).L  # needs no check: the damping makes it definite
        speed = (jacobian.mT @ torch.cholesky_solve(error[..., None], factor))[..., 0]
        qpos = torch.where(reached[:, None], qpos, qpos + iteration.step * speed)  # an arm that is there stays
    return torch.where(reached[:, None], qpos, start.double()), reached


def forward_kinematics(chain: Chain, qpos: Tensor) -> Tensor:
    """The end effector's transform [N, 4, 4] in the base frame at joint positions [N, J], radians."""
    return chain.frames(qpos)[:, -1] @ chain.tip


def matrices(pose: Tensor) -> Tensor:
    """Poses [N, 7] as transforms [N, 4, 4] float64."""
    pose = pose.double()
    unit = torch.nn.functional.normalize(pose[:, 3:], dim=1)
    axes = torch.eye(3, dtype=pose.dtype, device=pose.device).repeat(len(pose), 1)
    transform = torch.zeros(len(pose), 4, 4, dtype=pose.dtype, device=pose.device)
    transform[:, :3, :3] = rotate(unit.repeat_interleave(3, 0), axes).unflatten(0, (-1, 3)).mT
    transform[:, :3, 3] = pose[:, :3]
    transform[:, 3, 3] = 1
    return transform


def invert(transform: Tensor) -> Tensor:
    """The inverse of rigid transforms [N, 4, 4]."""
    inverse = transform.clone()
    inverse[:, :3, :3] = transform[:, :3, :3].mT
    inverse[:, :3, 3:] = -inverse[:, :3, :3] @ transform[:, :3, 3:]
    return inverse


def cross(vector: Tensor) -> Tensor:
    """The matrices [..., 3, 3] of the cross product with vectors [..., 3]."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def logarithm(transform: Tensor) -> Tensor:
    """The motion [N, 6], metres then radians, whose exponential is the rigid transform [N, 4, 4]. Its rotation must be
    less than half a turn.
    """
    rotation, place = transform[:, :3, :3], transform[:, :3, 3]
    skew = (rotation - rotation.mT) / 2
    sine = torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], 1)
    length = sine.norm(dim=1, keepdim=True)
    cosine = (rotation.diagonal(dim1=1, dim2=2).sum(1, keepdim=True) - 1) / 2
    angle = torch.atan2(length, cosine)  # precise at small and at large angles, as acos and asin are not
    turn = torch.where(length > 0, sine * angle / length, sine)
    half = angle.clamp_min(TINY) / 2
    across = torch.linalg.cross(turn, place)
    bend = (1 - half * half.cos() / half.sin()) / (2 * half) ** 2
    return torch.cat([place - across / 2 + bend * torch.linalg.cross(turn, across), turn], 1)


def left_jacobian_inverse(motion: Tensor) -> Tensor:
    """The derivative [N, 6, 6] of the logarithm at a motion [N, 6] by a motion multiplied from the left."""
    turn = cross(motion[:, 3:])
    bracket = torch.zeros(len(motion), 6, 6, dtype=motion.dtype, device=motion.device)
    bracket[:, :3, :3] = bracket[:, 3:, 3:] = turn
    bracket[:, :3, 3:] = cross(motion[:, :3])
    angle = motion[:, 3:].norm(dim=1).clamp_min(TINY)[:, None, None]
    versine = 2 * (angle / 2).sin() ** 2  # 1 - cos, exact for small angles
    second = 2 / angle**2 - (angle + 3 * angle.sin()) / (4 * angle * versine)
    fourth = 1 / angle**4 - (angle + angle.sin()) / (4 * angle**3 * versine)
    square = bracket @ bracket
    one = torch.eye(6, dtype=motion.dtype, device=motion.device)
    return one - bracket / 2 + second * square + fourth * (square @ square)


def _attribute(joint: ElementTree.Element, child: str, name: str) -> str:
    found = joint.find(child)
    return str(found.get(name)) if found is not None else ""


def _numbers(text: str) -> Tensor:
    return torch.tensor([float(number) for number in text.split()], dtype=torch.float64)


def _origin(joint: ElementTree.Element) -> Tensor:
    origin = joint.find("origin")
    transform = torch.eye(4, dtype=torch.float64)
    if origin is not None:
        transform[:3, :3] = torch.from_numpy(
            Rotation.from_euler("xyz", _numbers(origin.get("rpy", "0 0 0"))).as_matrix()
        )
        transform[:3, 3] = _numbers(origin.get("xyz", "0 0 0"))
    return transform
