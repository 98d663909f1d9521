"""What the demo's repetitions are told of, and when a claim holds."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.loading import load

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "reliability.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load(SCRIPT, "reliability")


def a_run(**changes: Any) -> dict[str, Any]:
    """One in which every claim holds."""
    unchanged = {"difference": -0.03, "low": -0.06, "high": 0.0}
    return {
        "seed": 0,
        "capability": "avx2",
        "threads": 1,
        "seconds": 500,
        "base": {"can": 0.4, "prior": 0.95},
        "end": {"rl": 0.7, "sft": 0.8, "sft_far": 0.75},
        "best": {"rl": 0.7, "sft": 0.8, "sft_far": 0.75},
        "level": 0.7,
        "equal": {"rl": 0.7, "sft": 0.72, "sft_far": 0.75},
        "prior": {"rl": 0.92, "sft": 0.92, "sft_far": 0.92},
        "base_at_end": {"can": 0.3, "prior": 0.9},
        "equal_at_end": {"rl": 0.6, "sft": 0.6, "sft_far": 0.6},
        "prior_at_end": {"rl": 0.8, "sft": 0.8, "sft_far": 0.8},
        "forward_kl": {"rl": 1.0, "sft": 2.0, "sft_far": 3.0},
        "prior_change": dict.fromkeys(("rl", "sft", "sft_far"), unchanged),
        "rl_kept_more": {"difference": 0.1, "low": 0.01, "high": 0.2},
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({}, []),
        ({"best": {"rl": 0.69, "sft": 0.8, "sft_far": 0.75}}, [0]),
        ({"prior_change": {"rl": {"difference": -0.04, "low": -0.1, "high": 0.0}}}, [1]),
        ({"rl_kept_more": {"difference": 0.1, "low": -0.01, "high": 0.2}}, [2]),
        ({"forward_kl": {"rl": 2.5, "sft": 2.0, "sft_far": 3.0}}, [3]),
        ({"forward_kl": {"rl": 1.0, "sft": 4.0, "sft_far": 3.0}}, [3]),
    ],
)
def test_when_a_claim_holds(script: ModuleType, changes: dict[str, Any], broken: list[int]) -> None:
    held = [claim(a_run(**changes)) for claim in script.CLAIMS.values()]
    assert [number for number, holds in enumerate(held) if not holds] == broken


def test_twelve_runs_have_every_seed_and_every_machine_twice(script: ModuleType) -> None:
    runs = [(n % len(script.SEEDS), script.MACHINES[n % len(script.MACHINES)]) for n in range(30)]
    assert len(set(runs)) == 30
    assert all(sum(run[1] == machine for run in runs[:12]) == 2 for machine in script.MACHINES)
    assert all(sum(run[0] == seed for run in runs[:12]) >= 2 for seed in script.SEEDS)


def test_the_table_counts_the_runs_in_which_each_claim_holds(script: ModuleType) -> None:
    lines = script.table([a_run(seed=1), a_run(seed=0, level=0.5, forward_kl={"rl": 9, "sft": 2, "sft_far": 3})])
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| 0", "| 1"], "in order of the seeds"
    assert [line[-6:] for line in lines[-4:]] == ["2 of 2", "2 of 2", "2 of 2", "1 of 2"]


def test_ranges_are_the_median_with_the_least_and_the_most(script: ModuleType) -> None:
    levels = {"rl": 0.5, "sft": 0.6, "sft_far": 0.7}
    lines = script.ranges([a_run(), a_run(), a_run(end=levels, base={"can": 0.1, "prior": 1.0})])
    assert lines[2].startswith("| the can, at the end of the training | 40% (10% to 40%) | 70% (50% to 70%) | ")
    assert lines[5] == "| ... at the end of the episode | 30% (30% to 30%) |" + 3 * " 60% (60% to 60%) |"
    assert lines[-2] == "| ... change since the base |  |" + 3 * " -3% (-3% to -3%) |"
    assert lines[-1].endswith("| 0 | 1.0 (1.0 to 1.0) | 2.0 (2.0 to 2.0) | 3.0 (3.0 to 3.0) |")


def test_what_is_told_of_a_demo(script: ModuleType, tmp_path: Path) -> None:
    def entry(can: float, prior: float, kl: float) -> dict[str, Any]:
        rates = [{"success_once": {"rate": rate}, "success_at_end": {"rate": 0.0}} for rate in (can, prior)]
        return {"new_task": {"pick_can": rates[0]}, "prior_mean": rates[1], "forward_kl": {"per_action": kl}}

    ends = {name: entry(0.8, 0.7, 9.0) for name in ("sft", "sft_far", "rl")} | {"base": entry(0.4, 0.9, 0.0)}
    equal = {name: entry(0.7, 0.8, 4.0) for name in ("sft", "sft_far", "rl")} | {"base": entry(0.4, 0.9, 0.0)}
    lost = {"difference": -0.1, "low": -0.2, "high": 0.0}
    matched = {
        "level": 0.7,
        "best": {"sft": 0.8, "sft_far": 0.8, "rl": 0.7},
        "policies": equal,
        "changes": {name: {"prior": {"success_once": lost}} for name in ("sft", "sft_far", "rl")},
        "prior_kept_more": {"rl": {"sft_far": lost}},
    }
    (tmp_path / "summary.json").write_text(json.dumps({"policies": ends, "matched": matched}))
    told = script.told(tmp_path)
    assert told["base"] == {"can": 0.4, "prior": 0.9}
    assert told["end"] == {"rl": 0.8, "sft": 0.8, "sft_far": 0.8}
    assert told["equal"]["rl"] == 0.7
    assert told["base_at_end"] == {"can": 0.0, "prior": 0.0}
    assert (told["equal_at_end"]["rl"], told["prior_at_end"]["rl"]) == (0.0, 0.0)
    assert (told["prior"]["sft_far"], told["forward_kl"]["sft"]) == (0.8, 4.0)
    assert (told["prior_change"]["rl"], told["level"]) == (lost, 0.7)
