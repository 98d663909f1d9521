"""Jerk-limited joint paths of many arms at once: what ruckig plans for one on a CPU.

The paths are those of SimplerEnv's controllers. They start at any velocity within the limit and without acceleration,
and end at rest; limits are the same in both directions, and all joints arrive together at the earliest common time.
Berscheid and Kröger (Jerk-limited Real-time Trajectory Generation with Arbitrary Target States, RSS 2021) treat the
general case. This one is simpler: one number per joint, its cruising speed, determines the path. A *ramp* changes the
speed by x in the shortest time T(x), with no acceleration at either end, and covers its mean speed times T(x). A joint
that ramps to a cruising speed, cruises and ramps to rest covers a distance that grows with that speed.

About one joint in two thousand has only just the time to stop, and no cruising speed gives its distance. It then brakes
hard and later mildly, or speeds up a little first, as ruckig lets it. Towards smaller angles ruckig may brake twice
instead of speeding up; until both arrive, at the same time, its path and this one lie within a milliradian.

Everything is float64 over N environments and J joints, in radians and seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ROOT_STEPS = 50  # enough for bisection alone to reach float64's precision
MISSED = 1e-9  # radians: a path that ends farther from its target than this has missed it
LATE = 1e-12  # seconds, of rounding
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
        start: the joints' positions, [N, J].
        velocity: their velocities, [N, J], within the limit.
        target: the positions at which they come to rest, [N, J].
        limits: of every joint.
        times: since the start, [T]; a path that has arrived stays.

    Returns:
        Positions and velocities [T, N, J], float64, at these times.
    """
    start, velocity = start.double(), velocity.double()
    # Everything below is seen in the direction in which the joint moves, so that its speed is never negative; a joint
    # at rest looks towards its target.
    distance = target.double() - start
    sign = torch.where(velocity == 0, distance.sign(), velocity.sign())
    speed, distance = velocity.abs(), distance * sign
    # The slowest joint sets the common time; the others cruise more slowly so as to arrive with it.
    time = _shortest(speed, distance, limits).amax(1, keepdim=True).expand_as(distance)
    stretches = _cruising(speed, _cruise_speed(speed, distance, time, limits), time, limits)
    durations, jerks = (torch.stack(part) for part in stretches)
    missed = (_covered(speed, stretches) - distance).abs() > MISSED
    if missed.any():  # rare, so that only these are computed
        staged = _staged(speed[missed], distance[missed], time[missed], limits)
        durations[:, missed], jerks[:, missed] = (torch.stack(part) for part in staged)
    return _sample(start, velocity, durations, jerks * sign, times)


def _ramp(change: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
    """For a ramp by a change x of speed: how long it lasts, T(|x|), and x dT/dx, which Newton's method needs."""
    size = change.abs()
    sharp = size * limits.jerk <= limits.acceleration**2  # so small that the acceleration's limit is not reached
    sharp_time, long_time = 2 * (size / limits.jerk).sqrt(), size / limits.acceleration
    edge = limits.acceleration / limits.jerk
    return torch.where(sharp, sharp_time, long_time + edge), torch.where(sharp, sharp_time / 2, long_time)


def _shortest(speed: Tensor, distance: Tensor, limits: Limits) -> Tensor:
    """The shortest time in which a joint of this speed >= 0 comes to rest at this distance: a ramp to a top speed, a
    cruise only where that is the limit, and a ramp to rest.
    """
    # Where braking at once already goes too far, the joint must turn back: the same problem in a mirror, begun at a
    # negative speed.
    sign = torch.where(distance >= speed * _ramp(speed, limits)[0] / 2, 1.0, -1.0)
    speed, distance = speed * sign, distance * sign
    least = speed.clamp_min(0)

    def excess(root: Tensor) -> tuple[Tensor, Tensor]:
        """Distance too many, and its slope, by the root of the top speed's excess over the least. In the speed itself
        the slope would be infinite at the least.
        """
        top = least + root**2
        (up, up_growth), (down, down_growth) = _ramp(top - speed, limits), _ramp(top, limits)
        slope = root * (up + down + down_growth + (speed + top) / (top - speed) * up_growth)
        return (speed + top) / 2 * up + top / 2 * down - distance, slope

    most = (limits.velocity - least).clamp_min(0).sqrt()
    top = least + _root(excess, torch.zeros_like(most), most) ** 2
    cruise = (-excess(most)[0]).clamp_min(0) / limits.velocity
    return _ramp(top - speed, limits)[0] + cruise + _ramp(top, limits)[0]


def _cruise_speed(speed: Tensor, distance: Tensor, time: Tensor, limits: Limits) -> Tensor:
    """The cruising speed with which a joint comes to rest at this distance after this time.

    Between 0 and the start speed the two ramps may last longer than there is time. Then no speed in that range works,
    and the one returned is at its edge.
    """
    # The distance grows with the cruising speed. Comparing it with the distances at known speeds gives the bracket in
    # which to search: above the start speed, from half of it to it, from rest to half of it, or below rest.
    stop = speed * _ramp(speed, limits)[0] / 2
    far = distance >= speed * time / 2  # what cruising at half the speed would cover
    outside = torch.where(far, distance >= speed * time - stop, distance <= stop)
    limit, zero = torch.full_like(speed, limits.velocity), torch.zeros_like(speed)
    low = torch.where(far, torch.where(outside, speed, speed / 2), torch.where(outside, -limit, zero))
    high = torch.where(far, torch.where(outside, limit, speed), torch.where(outside, zero, speed / 2))
    # Where the ramps alone take longer than there is time, an infinite value tells the bracket which side that is.
    beyond = torch.where(far == outside, torch.inf, -torch.inf)

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
    """A ramp's three stretches of constant jerk: the acceleration grows, stays, and falls back to zero."""
    edge = (change.abs() / limits.jerk).sqrt().clamp_max(limits.acceleration / limits.jerk)
    flat = (change.abs() / limits.acceleration - limits.acceleration / limits.jerk).clamp_min(0)
    jerk = change.sign() * limits.jerk
    return [edge, flat, edge], [jerk, torch.zeros_like(jerk), -jerk]


def _staged(speed: Tensor, distance: Tensor, time: Tensor, limits: Limits) -> Stretches:
    """Paths of joints [M] for which no cruising speed gives the distance. One number, how hard they brake at the end,
    determines the path.
    """
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
        return _covered(speed, shape(brake)) - distance, zero  # without a slope `_root` bisects

    hardest = torch.minimum((speed + jerk * time**2 / 4) / time, torch.full_like(even, most))
    return shape(_root(excess, torch.where(far, even, zero), torch.where(far, hardest, even)))


def _covered(speed: Tensor, stretches: Stretches) -> Tensor:
    """The distance that a path covers, which begins at this speed and without acceleration."""
    distance, acceleration = torch.zeros_like(speed), torch.zeros_like(speed)
    for t, jerk in zip(*stretches, strict=True):
        distance = distance + t * (speed + t * (acceleration / 2 + t * jerk / 6))
        speed = speed + t * (acceleration + t * jerk / 2)
        acceleration = acceleration + t * jerk
    return distance


def _sample(start: Tensor, velocity: Tensor, durations: Tensor, jerks: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and velocities [T, N, J] at times [T] on the paths of these stretches [7, N, J]."""
    # All times walk through the stretches together: each spends on a stretch what it has left, at most its duration.
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
    """Where a function that grows between `low` and `high` is zero; `excess` gives its value and its slope.

    Newton's method in a bracket: a step that would leave it goes to its middle instead. Every element takes all the
    steps, so that nothing waits for the GPU.
    """
    x = (low + high) / 2
    for _ in range(ROOT_STEPS):
        value, slope = excess(x)
        low, high = torch.where(value <= 0, x, low), torch.where(value >= 0, x, high)
        step = x - value / slope
        x = torch.where((step >= low) & (step <= high), step, (low + high) / 2)
    return x
