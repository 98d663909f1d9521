"""Reading results tables: what belongs together, what is in no fit, and what is refused."""

from pathlib import Path

import pytest

from tests.study.support import row, rows, write
from vla_razor.errors import UserError
from vla_razor.study import table


def test_what_a_row_says(tmp_path: Path) -> None:
    study = table.read([write(tmp_path / "one", rows(seeds=1))])
    assert study.bases_of("robot") == {"": (0.3, 0.8)} and len(study.results) == 8
    result = study.results[0]
    assert (result.method, result.run, result.step) == ("sft", "sft_seed0", 1)
    assert result.forgotten == pytest.approx(0.05 * result.measures["forward_kl_per_token"] ** 2)
    assert result.priors == {"open_top_drawer": result.prior}
    assert table.measures_of(study.results) == ["forward_kl_per_token", "reverse_kl_per_token"]


def test_runs_of_two_folders_are_told_apart(tmp_path: Path) -> None:
    study = table.read([write(tmp_path / name, rows(seeds=1)) for name in ("one", "two")])
    assert {result.run for result in study.results} == {f"{f}/{m}_seed0" for f in ("one", "two") for m in ("sft", "rl")}


def test_folders_of_one_name_are_called_by_their_paths(tmp_path: Path) -> None:
    folders = [write(tmp_path / name / "sweep", rows(seeds=1)) for name in ("one", "two")]
    assert {result.run for result in table.read(folders).results} == {
        f"{folder}/{method}_seed0" for folder in folders for method in ("sft", "rl")
    }


def test_what_a_measure_lacks_is_told(tmp_path: Path) -> None:
    made = rows(seeds=2)
    made[-1]["reverse_kl_per_token"] = float("nan")
    results = table.read([write(tmp_path, made)]).results
    assert table.unmeasured(results) == {"reverse_kl_per_token": ["rl_seed1"]}
    assert table.measures_of(results) == ["forward_kl_per_token"]


def test_each_seed_is_measured_against_its_own_base(tmp_path: Path) -> None:
    """As in ParityMNIST, where every seed has a base."""
    bases = [row("base", seed, 0, 0.0, 0.1 * seed) for seed in (0, 1)]
    study = table.read([write(tmp_path, [*bases, row("sft", 1, 1, 1.0, 0.3)])])
    assert study.results[0].forgotten == pytest.approx(0.2)


def test_each_model_is_measured_against_its_own_base(tmp_path: Path) -> None:
    bases = [row("base", 0, 0, 0.0, lost, model=f"made/{name}") for name, lost in (("small", 0.3), ("large", 0.0))]
    tuned = row("sft", 0, 1, 1.0, 0.5, model="made/small")
    study = table.read([write(tmp_path, [*bases, tuned])])
    assert study.results[0].forgotten == pytest.approx(0.2)
    assert set(study.bases_of("robot")) == {"made/small", "made/large"}
    assert table.short_names(study.bases_of("robot")) == {"made/small": "small", "made/large": "large"}
    assert table.short_names(["a/x", "b/x"]) == {"a/x": "a/x", "b/x": "b/x"}


def test_what_failed_or_is_not_finite_is_left_out_with_its_reason(tmp_path: Path) -> None:
    failed = row("sft", 7, 0, 1.0, 0.1, status="failed", reason="the loss is nan", new=None, prior=None)
    broken = row("sft", 8, 3, float("nan"), 0.1, new=0.5)
    study = table.read([write(tmp_path, [*rows(seeds=1), failed, broken])])
    assert len(study.results) == 8
    assert study.left_out == ["sft_seed7: the loss is nan", "sft_seed8, step 3: forward_kl_per_token not finite"]


def test_what_is_no_common_table_is_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "one", rows(seeds=1))
    other = write(tmp_path / "other", [row("base", 0, 0, 0.0, 0.2), row("sft", 0, 1, 1.0, 0.1)])
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "results.parquet").write_text("not a table")
    only_failed = row("sft", 0, 1, 1.0, 0.1, status="failed", reason="died")
    foreign = [row("base", 0, 0, 0.0, 0.0, model="B"), row("sft", 0, 1, 1.0, 0.1, model="A")]
    for folders, says in (
        ([one, other], "different bases"),
        ([one, tmp_path / "other" / ".." / "one"], "given twice"),
        ([write(tmp_path / "unknown_base", [row("base", 0, 0, 0.0, 0.0, prior=None), *rows()[1:]])], "not a number"),
        (
            [write(tmp_path / "seedless", [{k: v for k, v in r.items() if k != "seed"} for r in rows()])],
            "no column seed",
        ),
        ([write(tmp_path / "worded", [{**r, "prior": "x"} for r in rows()])], "not a number"),
        ([tmp_path / "empty"], "there is no results table"),
        ([tmp_path / "text"], "cannot be read as a table"),
        ([write(tmp_path / "none", [])], "it is empty"),
        ([write(tmp_path / "foreign", [{"a": 1}])], "no column domain"),
        ([write(tmp_path / "baseless", rows(seeds=1)[1:])], "no row of a base"),
        ([write(tmp_path / "foreign_base", foreign)], "of the base A"),
        ([write(tmp_path / "failed", [rows()[0], only_failed])], "has finished"),
    ):
        with pytest.raises(UserError, match=says):
            table.read(folders)
