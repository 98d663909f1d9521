"""One name a measure: what is logged, and what files of earlier versions say."""

import json
from pathlib import Path

from tests.study.support import row, rows, write
from vla_razor.study import forecast, measures, table
from vla_razor.study.forecast import FittedLaw

SUMMARY = {"per_token": 0.1, "per_action": 0.7, "sharpening": 0.5, "displacement": 0.2, "states": 8, "reverse_kl": 0.3}
SUMMARY |= {"temperature": 0.9, "entropy": 1.5, "by_position": [0.1] * 7}


def test_what_is_logged_of_an_entry_of_the_summary() -> None:
    assert measures.logged(SUMMARY) == {
        "forward_kl_per_token": 0.1,
        "forward_kl_per_action": 0.7,
        "sharpening": 0.5,
        "displacement": 0.2,
        "reverse_kl_per_token": 0.3,
        "entropy": 1.5,
    }


def test_rows_of_earlier_versions_have_the_names_of_today(tmp_path: Path) -> None:
    """REINFORCE's, SFT's, `kl`'s, and one of a language model; then one of today, as it is."""
    now = {"step": 5, "episode_length": 9.0, "sampled_entropy": 2.0, "entropy": 1.9, "forward_kl_per_token": 0.1}
    earlier = [
        {"step": 1, "episode_length": 9.0, "entropy": 2.0, "probe_entropy": 1.9, "forward_kl": 0.1},
        {"step": 2, "loss": 1.0, "probe_reverse_kl": 0.2, "probe_entropy": 1.8, "forward_kl_per_action": 0.7},
        {"step": 3, "per_token": 0.1, "per_action": 0.7, "reverse_kl": 0.2, "entropy": 1.8},
        {"step": 4, "forward_kl": 0.1, "reverse_kl": 0.2, "per_completion": 3.0, "entropy": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in [*earlier, now]))
    assert measures.read_rows(tmp_path) == [
        {"step": 1, "episode_length": 9.0, "sampled_entropy": 2.0, "entropy": 1.9, "forward_kl_per_token": 0.1},
        {"step": 2, "loss": 1.0, "reverse_kl_per_token": 0.2, "entropy": 1.8, "forward_kl_per_action": 0.7},
        {"step": 3, "forward_kl_per_token": 0.1, "forward_kl_per_action": 0.7, "reverse_kl_per_token": 0.2}
        | {"entropy": 1.8},
        {"step": 4, "forward_kl_per_token": 0.1, "reverse_kl_per_token": 0.2, "forward_kl_per_completion": 3.0}
        | {"entropy": 0.5},
        now,
    ]


def test_a_table_of_an_earlier_version_is_read_beside_one_of_today(tmp_path: Path) -> None:
    old_names = {"forward_kl_per_token": "forward_kl", "reverse_kl_per_token": "reverse_kl"}
    earlier = [{old_names.get(name, name): value for name, value in one.items()} for one in rows(seeds=1)]
    study = table.read([write(tmp_path / "old", earlier), write(tmp_path / "new", rows(seeds=1))])
    one, other = (study.results[place] for place in (0, len(study.results) // 2))
    assert "forward_kl" in earlier[0] and one.measures == other.measures
    assert table.measures_of(study.results) == ["forward_kl_per_token", "reverse_kl_per_token"]


def test_a_law_of_an_earlier_version_is_followed(tmp_path: Path) -> None:
    fitted = FittedLaw("robot", "forward_kl", (0.0, 0.1, 0.0), 0.9, (0.0, 2.0), -0.1, 0.1, 12)
    forecast.save(tmp_path / "law.json", fitted)
    assert forecast.load(tmp_path, "robot") == fitted._replace(measure="forward_kl_per_token")


def test_what_only_multiplies_another_predicts_nothing(tmp_path: Path) -> None:
    more = {"forward_kl_per_action": 7.0, "entropy": 1.0}
    study = table.read([write(tmp_path, [row("base", 0, 0, 0.0, 0.0, **more), row("sft", 0, 1, 1.0, 0.1, **more)])])
    assert table.measures_of(study.results) == ["forward_kl_per_token", "reverse_kl_per_token"]
