"""How PhysX 4.1.1, the original's simulator, drives the joints of an arm, and how PhysX 5 is made to do the same.

PhysX 4's temporal solver splits a physics step into `PASSES` parts. In each part it goes once over the drives, from the
base to the tips. A drive corrects its impulse so far for the speed that its joint has by then, but only x = 1 / (1 + a
response) of the way, where a = dt (dt stiffness + damping) and the response is the speed that a unit impulse gives the
joint. Positions then advance by the speeds so far, in single precision. PhysX 5's older solver, with enough iterations,
goes on within a step until nothing is left to correct, and advances positions once. So the original's joints move
differently:

- Drives that pull at each other do not agree after one pass, so the parts of a step differ.
- A part of a step smaller than half of a position's last digit is lost. A joint beyond one radian stands still below
  0.8 mrad/s, half a milliradian from its target.
- Where a contact stops a joint, its drive pushes with only 1 - (1 - x)^26 of its force, which is little for a light
  joint.

For the first two, the motion of a free arm is computed ahead, and turned into the targets that make PhysX 5's implicit
steps follow it. The last is a factor on the gains. Constants are the original's; nothing is fitted. (Source:
DyFeatherstoneArticulation.cpp and DyTGSDynamics.cpp of github.com/NVIDIAGameWorks/PhysX at ae80dede.)
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numba import njit

PASSES = 25  # that advance positions; one more corrects speeds only
RENEWED_AFTER = 9  # physics steps for which the response of the arm is taken to stay as it is
LINK_DAMPING = 0.05  # 1/s, of every link's linear and angular speed, in both simulators


@dataclass(frozen=True)
class ArmDrives:
    """The original's drives: stiffness in N m/rad and damping in N m s/rad, float64 [J], from the base to the tips; and
    the physics step in seconds.
    """

    stiffness: np.ndarray
    damping: np.ndarray
    timestep: float

    def share(self, response: np.ndarray) -> np.ndarray:
        """The part of its force with which each drive pushes a contact, [J]; response [J] in rad/s for 1 N m s."""
        return _share(response, self.stiffness, self.damping, self.timestep)

    def targets(
        self,
        position: np.ndarray,
        velocity: np.ndarray,
        wanted: np.ndarray,
        wanted_velocity: np.ndarray,
        inertia_at: Callable[[np.ndarray], np.ndarray],
        factor: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The targets that make a free arm move under PhysX 5 as the original does towards the wanted ones. Its gains
        are these gains times the share.

        Args:
            position: of the joints, [J], radians; `velocity`, [J], rad/s.
            wanted: the original's targets for the T physics steps to come, [T, J]; `wanted_velocity` likewise, rad/s.
            inertia_at: the mass matrix [J, J] at joint positions [J].
            factor: on each joint's share, [J].

        Returns:
            The targets [T, J], to be commanded without velocities, and the share of each joint [J] in the present
            position.
        """
        gains = self.stiffness, self.damping, self.timestep
        position, velocity = position.astype(np.float64), velocity.astype(np.float64)
        inertia = inertia_at(position), inertia_at(_lag(position, wanted, wanted_velocity, *gains))
        return _targets(position, velocity, wanted, wanted_velocity, *inertia, factor, *gains)


@njit(cache=True)
def _targets(position, velocity, wanted, wanted_velocity, inertia, inertia_then, factor, stiffness, damping, timestep):
    gains = stiffness, damping, timestep
    response, response_then = np.linalg.inv(inertia), np.linalg.inv(inertia_then)
    share = factor * _share(np.diag(response), *gains)
    positions = _move(position, velocity, wanted, wanted_velocity, response, response_then, *gains)
    return _aim(positions, velocity, inertia, inertia_then, share * stiffness, *gains), share


@njit(cache=True)
def _resistance(stiffness, damping, timestep):
    """The impulse by which a drive is held back for each rad/s of its joint's speed."""
    return timestep * (timestep * stiffness + damping)


@njit(cache=True)
def _share(response, stiffness, damping, timestep):
    resistance = _resistance(stiffness, damping, timestep)
    return 1 - (1 - 1 / (1 + resistance * response)) ** (PASSES + 1)


@njit(cache=True)
def _lag(position, wanted, wanted_velocity, stiffness, damping, timestep):
    """About where the joints are after the T steps: where they would be without inertia."""
    last = position.copy()
    for step in range(len(wanted)):
        for joint in range(len(last)):
            push = stiffness[joint] * (wanted[step, joint] - last[joint])
            push += damping[joint] * wanted_velocity[step, joint]
            last[joint] += timestep * push / (damping[joint] + timestep * stiffness[joint])
    return last


@njit(cache=True)
def _passes(response, resistance):
    """The speeds of all joints after each pass, [J, (PASSES + 1) J], for a unit of impulse wanted from each drive.

    A step is linear in these impulses, so that it need not go through the passes itself.
    """
    joints = len(resistance)
    speeds = np.empty((joints, PASSES + 1, joints), np.float32)
    left, speed, more = np.eye(joints), np.zeros((joints, joints)), np.empty(joints)
    for turn in range(PASSES + 1):
        for joint in range(joints):
            way = 1 / (1 + resistance[joint] * response[joint, joint])
            for unit in range(joints):
                more[unit] = way * (left[joint, unit] - resistance[joint] * speed[joint, unit])
                left[joint, unit] -= more[unit]
            for other in range(joints):
                for unit in range(joints):
                    speed[other, unit] += response[other, joint] * more[unit]
        speeds[:, turn] = speed.T
    return speeds.reshape(joints, -1)


@njit(cache=True)
def _move(position, velocity, wanted, wanted_velocity, response, response_then, stiffness, damping, timestep):
    """The original's positions [T + 1, J], float64. The response [J, J] goes evenly from the first to the last."""
    steps, joints = wanted.shape
    resistance = _resistance(stiffness, damping, timestep)
    first, last = _passes(response, resistance), _passes(response_then, resistance)
    part = np.float32(timestep / PASSES)
    place, speed = position.astype(np.float32), velocity.copy()
    positions = np.empty((steps + 1, joints))
    positions[0] = place
    passes, gained = np.empty_like(first), np.empty((PASSES + 1) * joints, np.float32)
    for step in range(steps):
        if step % RENEWED_AFTER == 0:
            late = np.float32((step + RENEWED_AFTER / 2) / steps)
            early = np.float32(1) - late
            for joint in range(joints):
                for column in range(len(gained)):
                    passes[joint, column] = early * first[joint, column] + late * last[joint, column]
        gained[:] = 0.0
        for joint in range(joints):
            speed[joint] *= 1 - LINK_DAMPING * timestep
            behind = np.float32(wanted[step, joint]) - place[joint]
            push = stiffness[joint] * behind + damping[joint] * wanted_velocity[step, joint]
            impulse, of_one = np.float32(timestep * push - resistance[joint] * speed[joint]), passes[joint]
            for column in range(len(gained)):
                gained[column] += impulse * of_one[column]
        # In float32, part by part: what single precision loses here, the original's joints do not move.
        for turn in range(PASSES):
            for joint in range(joints):
                place[joint] += part * (np.float32(speed[joint]) + gained[turn * joints + joint])
        for joint in range(joints):
            speed[joint] += gained[PASSES * joints + joint]
        positions[step + 1] = place
    return positions


@njit(cache=True)
def _aim(positions, velocity, inertia, inertia_then, pushing, stiffness, damping, timestep):
    """The targets [T, J] with which implicit steps lead from each of the positions [T + 1, J] to the next, where the
    drives have a stiffness of `pushing` N m/rad and no velocity is commanded.
    """
    steps, joints = positions.shape[0] - 1, positions.shape[1]
    targets, before, gain = np.empty((steps, joints)), velocity.copy(), np.empty(joints)
    for step in range(steps):
        late = step / steps
        for joint in range(joints):
            speed = (positions[step + 1, joint] - positions[step, joint]) / timestep
            gain[joint] = speed - (1 - LINK_DAMPING * timestep) * before[joint]
            before[joint] = speed
        # An implicit step solves inertia * gain = dt stiffness (target - next position) - dt damping * next speed; this
        # is that equation for the target.
        for joint in range(joints):
            impulse = 0.0
            for other in range(joints):
                here = inertia[joint, other] + late * (inertia_then[joint, other] - inertia[joint, other])
                impulse += here * gain[other]
            lag = damping[joint] / stiffness[joint] * before[joint] + impulse / (timestep * pushing[joint])
            targets[step, joint] = positions[step + 1, joint] + lag
    return targets
