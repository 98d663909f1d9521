"""Jerk-limited joint paths of many arms at once: what ruckig plans for one on a CPU.

The paths are those of SimplerEnv's controllers: any start velocity within the limit, no acceleration at the start, rest
at the end, limits that are the same in both directions, and joints that arrive together at the earliest common time.
With those, a path is known by one number a joint. A *ramp* changes the speed by x in the shortest time T(x), without
acceleration at both of its ends, and covers its mean speed times T(x); a joint that ramps to a cruising speed, cruises
and ramps to rest covers a distance that grows with that speed. (Berscheid and Kröger, Jerk-limited Real-time
Trajectory Generation with Arbitrary Target States, RSS 2021, treat the general case.)

A joint that just has the time to stop may find no cruising speed for its distance: about one in two thousand. It then
brakes hard and later mildly, or speeds up a little first, as ruckig lets it. (On the way back, towards smaller angles,
ruckig may brake twice instead of speeding up: until they arrive, together, its path and this one lie within a
milliradian.) Everything is float64 over N environments and J joints; radians and seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Newton's steps, each inside a bracket that halves where a step would leave it.
ROOT_STEPS = 50
MISSED = 1e-9  # radians: a path that ends farther from its target than this is none
LATE = 1e-12  # seconds: rounding
Stretches = tuple[list[Tensor], list[Tensor]]  # durations in seconds and jerks


@dataclass(frozen=True)
class Limits:
    """Largest speed, acceleration and jerk of a joint, in rad/s, rad/s^2 and rad/s^3."""

    velocity: float
    acceleration: float
    jerk: float


def plan(start: Tensor, velocity: Tensor, target: Tensor, limits: Limits, times: Tensor) -> tuple[Tensor, Tensor]:
    """The fastest paths on which all joints of an environment arrive at their targets together.

    Args:
        start: where the joints are, [N, J].
        velocity: how fast they move, [N, J]; at most the limit.
        target: where they come to rest, [N, J].
        limits: of every joint.
        times: since the start, [T]; a path that has arrived stays.

    Returns:
        Positions and velocities [T, N, J], float64, at these times.
    """
    start, velocity = start.double(), velocity.double()
    # Seen in the direction in which the joint moves; a joint at rest starts towards its target.
    distance = target.double() - start
    sign = torch.where(velocity == 0, distance.sign(), velocity.sign())
    speed, distance = velocity.abs(), distance * sign
    time = _shortest(speed, distance, limits).amax(1, keepdim=True).expand_as(distance)
    stretches = _cruising(speed, _cruise_speed(speed, distance, time, limits), time, limits)
    durations, jerks = (torch.stack(part) for part in stretches)
    missed = (_covered(speed, stretches) - distance).abs() > MISSED
    if missed.any():  # rare
        staged = _staged(speed[missed], distance[missed], time[missed], limits)
        durations[:, missed], jerks[:, missed] = (torch.stack(part) for part in staged)
    return _sample(start, velocity, durations, jerks * sign, times)


def _ramp(change: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
    """How long a ramp by `change` lasts, T(|x|), and x dT/dx."""
    size = change.abs()
    sharp = size * limits.jerk <= limits.acceleration**2  # the acceleration's limit is not reached
    sharp_time, long_time = 2 * (size / limits.jerk).sqrt(), size / limits.acceleration
    edge = limits.acceleration / limits.jerk
    return torch.where(sharp, sharp_time, long_time + edge), torch.where(sharp, sharp_time / 2, long_time)


def _shortest(speed: Tensor, distance: Tensor, limits: Limits) -> Tensor:
    """The shortest time in which a joint of this speed >= 0 comes to rest at this distance: a ramp to a highest speed,
    a cruise only where that speed is the limit, and a ramp to rest.
    """
    sign = torch.where(distance >= speed * _ramp(speed, limits)[0] / 2, 1.0, -1.0)  # else it must turn back
    speed, distance = speed * sign, distance * sign
    least = speed.clamp_min(0)

    def excess(root: Tensor) -> tuple[Tensor, Tensor]:
        """By the root of what the highest speed has above the least: the distance has a slope in that."""
        top = least + root**2
        (up, up_growth), (down, down_growth) = _ramp(top - speed, limits), _ramp(top, limits)
        slope = root * (up + down + down_growth + (speed + top) / (top - speed) * up_growth)
        return (speed + top) / 2 * up + top / 2 * down - distance, slope

    most = (limits.velocity - least).clamp_min(0).sqrt()
    top = least + _root(excess, torch.zeros_like(most), most) ** 2
    cruise = (-excess(most)[0]).clamp_min(0) / limits.velocity
    return _ramp(top - speed, limits)[0] + cruise + _ramp(top, limits)[0]


def _cruise_speed(speed: Tensor, distance: Tensor, time: Tensor, limits: Limits) -> Tensor:
    """The speed at which to cruise so as to come to rest at this distance after this time.

    Between 0 and the start speed the two ramps may last longer than there is time: then no speed there will do, and the
    one returned is at the edge.
    """
    stop = speed * _ramp(speed, limits)[0] / 2
    far = distance >= speed * time / 2  # what cruising at half the speed would cover
    outside = torch.where(far, distance >= speed * time - stop, distance <= stop)
    limit, zero = torch.full_like(speed, limits.velocity), torch.zeros_like(speed)
    low = torch.where(far, torch.where(outside, speed, speed / 2), torch.where(outside, -limit, zero))
    high = torch.where(far, torch.where(outside, limit, speed), torch.where(outside, zero, speed / 2))
    beyond = torch.where(far == outside, torch.inf, -torch.inf)  # the side of the bracket where time runs out

    def excess(cruise: Tensor) -> tuple[Tensor, Tensor]:
        (first, first_growth), (second, second_growth) = _ramp(cruise - speed, limits), _ramp(cruise, limits)
        rest = time - first - second
        covered = (speed + cruise) / 2 * first + cruise * rest + cruise / 2 * second
        slope = time - (first + second + first_growth + second_growth) / 2
        return torch.where(rest < -LATE, beyond, covered - distance), slope

    return _root(excess, low, high)


def _cruising(speed: Tensor, cruise: Tensor, time: Tensor, limits: Limits) -> Stretches:
    """A ramp from a speed to the cruising speed, the cruise, and a ramp to rest."""
    (first, first_jerks), (second, second_jerks) = _edges(cruise - speed, limits), _edges(-cruise, limits)
    rest = (time - sum(first) - sum(second)).clamp_min(0)
    return [*first, rest, *second], [*first_jerks, torch.zeros_like(rest), *second_jerks]


def _edges(change: Tensor, limits: Limits) -> Stretches:
    """A ramp's three stretches: the acceleration grows, stays, and falls back to zero."""
    edge = (change.abs() / limits.jerk).sqrt().clamp_max(limits.acceleration / limits.jerk)
    flat = (change.abs() / limits.acceleration - limits.acceleration / limits.jerk).clamp_min(0)
    jerk = change.sign() * limits.jerk
    return [edge, flat, edge], [jerk, torch.zeros_like(jerk), -jerk]


def _staged(speed: Tensor, distance: Tensor, time: Tensor, limits: Limits) -> Stretches:
    """Paths of joints [M] that have the time to stop, but none to cruise on the way."""
    far = distance > speed * time / 2
    jerk, most = limits.jerk, limits.acceleration
    # The even braking that takes all the time covers speed * time / 2.
    even = jerk / 2 * (time - (time**2 - 4 * speed / jerk).clamp_min(0).sqrt())
    zero = torch.zeros_like(even)

    def shape(brake: Tensor) -> Stretches:
        # Far: a push first, then even braking at `brake`; their jerk takes the acceleration through `reach`.
        reach = (jerk * (brake * time - speed)).clamp_min(0).sqrt()
        push = [(reach - brake).clamp_min(0) / jerk, reach / jerk, (time - 2 * reach / jerk).clamp_min(0), brake / jerk]
        # Near: braking at `hard` first, held where that is the limit, then at `brake`.
        hard = (brake + (brake**2 + jerk * (speed - brake * time)).clamp_min(0).sqrt()).clamp_max(most)
        held = (speed - hard**2 / jerk - brake * (time - 2 * hard / jerk)) / (hard - brake)
        held = torch.where(hard < most, 0.0, held).clamp_min(0)
        rest = (time - 2 * hard / jerk - held).clamp_min(0)
        ease = [hard / jerk, held, (hard - brake).clamp_min(0) / jerk, rest, brake / jerk]
        durations = [torch.where(far, *pair) for pair in zip([*push, zero], ease, strict=True)]
        signs = zip((1, -1, 0, 1, 0), (-1, 0, 1, 0, 1), strict=True)
        return [*durations, zero, zero], [*(torch.where(far, *pair) * jerk for pair in signs), zero, zero]

    def excess(brake: Tensor) -> tuple[Tensor, Tensor]:
        return _covered(speed, shape(brake)) - distance, zero  # no slope: the bracket halves

    hardest = torch.minimum((speed + jerk * time**2 / 4) / time, torch.full_like(even, most))
    return shape(_root(excess, torch.where(far, even, zero), torch.where(far, hardest, even)))


def _covered(speed: Tensor, stretches: Stretches) -> Tensor:
    """The distance of a path from its start speed, without acceleration at the start."""
    distance, acceleration = torch.zeros_like(speed), torch.zeros_like(speed)
    for t, jerk in zip(*stretches, strict=True):
        distance = distance + t * (speed + t * (acceleration / 2 + t * jerk / 6))
        speed = speed + t * (acceleration + t * jerk / 2)
        acceleration = acceleration + t * jerk
    return distance


def _sample(start: Tensor, velocity: Tensor, durations: Tensor, jerks: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and velocities [T, N, J] at times [T] on the paths of these stretches [7, N, J]."""
    left = times.to(start)[:, None, None]
    position, acceleration = start, torch.zeros_like(start)
    for duration, jerk in zip(durations, jerks, strict=True):
        t = torch.minimum(left, duration)
        position = position + t * (velocity + t * (acceleration / 2 + t * jerk / 6))
        velocity = velocity + t * (acceleration + t * jerk / 2)
        acceleration = acceleration + t * jerk
        left = left - t
    return position, velocity


def _root(excess: Callable[[Tensor], tuple[Tensor, Tensor]], low: Tensor, high: Tensor) -> Tensor:
    """Where a function that grows between `low` and `high` is zero; `excess` gives its value and its slope."""
    x = (low + high) / 2
    for _ in range(ROOT_STEPS):
        value, slope = excess(x)
        low, high = torch.where(value <= 0, x, low), torch.where(value >= 0, x, high)
        step = x - value / slope
        x = torch.where((step >= low) & (step <= high), step, (low + high) / 2)
    return x
