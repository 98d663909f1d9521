"""A sweep: what it trains, what it keeps, and how it goes on."""

import math
import multiprocessing
import shutil
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.parity_mnist.support import WIDTH, Inline, few, write_images
from vla_razor.errors import RunFailed, UserError
from vla_razor.parity_mnist import measures, sweep, training
from vla_razor.parity_mnist.methods import METHODS
from vla_razor.parity_mnist.sweep import Job, Origin
from vla_razor.parity_mnist.training import Settings

ORIGIN = Origin(0, WIDTH)
CONTRACT = "domain method seed run step learning_rate new prior total_variation l2_distance"
CONTRACT += " forward_kl_per_token reverse_kl_per_token"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), few())


@pytest.fixture
def job(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A sweep without processes, over bases that are hardly trained."""
    monkeypatch.setattr(sweep, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(training, "PRETRAINING_EPOCHS", 2)
    return Job(images, tmp_path / "out", 2, "cpu")


def small_grid(methods: Sequence[str] = ("sft_2", "grpo"), rates: Sequence[float] = (1e-3, 1e-2)) -> list[Settings]:
    return sweep.grid(methods, rates, ["constant"], [2], [ORIGIN])


def finish(runs: list[Settings], job: Job) -> list[int]:
    """What was reported as done, until all was."""
    counts: list[int] = []
    sweep.sweep(runs, [], job, 1, counts.append)
    sweep.merge(runs, job)
    return counts


def test_the_grid_has_every_combination_once_and_in_groups() -> None:
    origins = [Origin(seed, width) for seed in (0, 1, 2) for width in (256, 512)]
    rates = sweep.learning_rates(3e-6, 1e-3, 15)
    runs = sweep.grid(list(METHODS), rates, ["constant", "cosine"], [1, 2], origins)
    assert len(runs) == len(METHODS) * 15 * 2 * 2 * 6
    assert len({run.name for run in runs}) == len(set(runs)) == len(runs)
    groups = [key for key, _ in groupby(runs, key=lambda run: (sweep.origin_of(run), run.method, run.epochs))]
    assert len(groups) == len(set(groups)) == 6 * len(METHODS) * 2


def test_learning_rates_are_evenly_spaced_on_a_logarithmic_scale() -> None:
    rates = sweep.learning_rates(3e-6, 1e-3, 15)
    assert (len(rates), rates[0], rates[-1]) == (15, pytest.approx(3e-6), pytest.approx(1e-3))
    np.testing.assert_allclose(np.diff(np.log(rates)), math.log(1e-3 / 3e-6) / 14)
    assert sweep.learning_rates(1e-4, 1e-4, 1) == pytest.approx([1e-4])


@pytest.mark.slow
def test_rows_are_sorted_and_hold_what_the_table_promises(job: Job) -> None:
    runs = sweep.grid(["sft_2", "grpo"], [1e-2, 1e-3], ["constant"], [2], [Origin(1, WIDTH), ORIGIN])
    assert finish(runs, job) == [2] * 4
    table = pq.read_table(job.out / "results.parquet")
    assert set(CONTRACT.split()) <= set(table.column_names)
    assert not any("seconds" in name or "wall" in name for name in table.column_names)
    rows = table.to_pylist()
    places = [(row["run"], row["step"]) for row in rows]
    assert places == sorted(places)
    assert len(rows) == 2 + 8 * 2
    assert {row["run"] for row in rows if row["method"] != "base"} == {run.name for run in runs}
    assert {(row["domain"], row["status"], row["reason"]) for row in rows} == {("parity_mnist", "done", None)}
    bases = [row for row in rows if row["method"] == "base"]
    assert [(row["seed"], row["step"], row["forward_kl_per_token"]) for row in bases] == [(0, 0, 0.0), (1, 0, 0.0)]
    for run in runs:
        own = [row for row in rows if row["run"] == run.name]
        assert [row["step"] for row in own] == [2, 4]
        assert {tuple(row[name] for name in Settings._fields) for row in own} == {tuple(run)}
        assert own[-1]["forward_kl_per_token"] > 0


@pytest.mark.slow
def test_a_sweep_goes_on_with_what_is_missing(job: Job) -> None:
    runs = small_grid()
    finish(runs, job)
    whole = (job.out / "results.parquet").read_bytes()
    before = {path: path.stat().st_mtime_ns for path in job.out.glob("*/*")}
    lost = sweep.shard_path(job.out, runs[1])
    shard = lost.read_bytes()
    lost.unlink()
    (job.out / "results.parquet").unlink()
    assert finish(runs, job) == [1]
    assert (job.out / "results.parquet").read_bytes() == whole
    assert lost.read_bytes() == shard
    after = {path: path.stat().st_mtime_ns for path in job.out.glob("*/*")}
    assert {path for path in after if after[path] != before[path]} == {lost}
    assert finish(runs, job) == [], "nothing is left"

    # What is damaged is told, and made again where the message is followed.
    (weights,) = job.out.glob("bases/*/*.safetensors")
    content = weights.read_bytes()
    for path in (weights, lost):
        path.write_bytes(path.read_bytes()[:-9] + bytes([path.read_bytes()[-9] ^ 1]) + path.read_bytes()[-8:])
    with pytest.raises(UserError, match=f"{lost} .*Delete {lost} and go on"):
        finish(runs, job)
    lost.unlink()
    sweep._bases.cache_clear()
    with pytest.raises(UserError, match=f"{weights} is damaged.*Delete {weights.parent} and go on"):
        finish(runs, job)
    shutil.rmtree(weights.parent)
    assert finish(runs, job) == [1]
    assert weights.read_bytes() == content and (job.out / "results.parquet").read_bytes() == whole
    more = small_grid(rates=(1e-3, 3e-3, 1e-2))
    assert finish(more, job) == [1, 1], "a wider sweep trains what is new"


@pytest.mark.slow
def test_a_teacher_has_its_own_row_apart_from_those_of_the_runs(job: Job) -> None:
    """It is measured as any other policy: at the weights that the students' labels were drawn from."""
    runs = small_grid(("sft_distilled",))
    finish(runs, job)
    (teacher,) = pq.read_table(sweep.teacher_path(job.out, ORIGIN)).to_pylist()
    assert (teacher["method"], teacher["seed"], teacher["epochs"], teacher["status"]) == ("teacher", 0, 2, "done")
    base, weights = sweep._bases(job, ORIGIN)
    expected = measures.measure(weights, base, sweep._images(job.data_dir)[1])
    assert {name: teacher[name] for name in expected} == pytest.approx(expected)
    assert teacher["forward_kl"] > 0
    table = sweep.merge(runs, job)
    assert "teacher" not in table["method"].to_pylist(), "it is no run of the sweep, and in no fit"
    assert sweep.with_teachers(table, runs, job)["method"].to_pylist()[-1] == "teacher"
    sweep.teacher_path(job.out, ORIGIN).unlink()
    assert finish(runs, job) == [1], "a sweep of an earlier version is told its teachers when it goes on"
    finish(small_grid(("sft_2",)), job._replace(out=job.out / "other"))
    assert not (job.out / "other" / "teachers").exists(), "nobody learns from one"


@pytest.mark.slow
@pytest.mark.parametrize("side_by_side", [1, 4])
def test_a_run_that_diverges_is_recorded(job: Job, monkeypatch: pytest.MonkeyPatch, side_by_side: int) -> None:
    """Alone, and beside one that does not."""
    monkeypatch.setattr(sweep, "SIDE_BY_SIDE", side_by_side)
    runs = small_grid(("sft_1", "grpo", "grpo_kl", "one_zero_reinforce"), (1e-3, 1e38))
    assert finish(runs, job) == ([1] * 8 if side_by_side == 1 else [2] * 4)
    rows = pq.read_table(job.out / "results.parquet").to_pylist()
    for run in runs:
        own = [row for row in rows if row["run"] == run.name]
        assert [row["step"] for row in own] == [2, 4], "no checkpoint is left out"
        if run.learning_rate < 1:
            assert {(row["status"], row["reason"]) for row in own} == {("done", None)}
        else:
            assert [(row["status"], row["reason"]) for row in own] == [
                ("diverged", "not finite at 2"),
                ("diverged", "not finite at 4"),
            ]
            assert all(
                math.isnan(row[name]) for row in own for name in ("new", "prior", "forward_kl_per_token", "weight_l1")
            )


@pytest.mark.slow
def test_a_network_that_is_finite_and_absurdly_far_counts_as_diverged(job: Job) -> None:
    finish(small_grid(("sft_1",), (1e6,)), job)
    rows = [row for row in pq.read_table(job.out / "results.parquet").to_pylist() if row["method"] == "sft_1"]
    assert all(row["status"] == "diverged" and math.isfinite(row["weight_l1"]) for row in rows)
    assert [row["reason"].split(" nats")[1] for row in rows] == [" at 2", " at 4"]


@pytest.mark.slow
def test_runs_trained_side_by_side_give_the_rows_of_single_ones(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that sample their answers among them: all take the same draws."""
    runs = small_grid(("sft_2", "sft_distilled", "grpo"), (1e-3, 3e-3, 1e-2, 1e-4, 3e-4))
    monkeypatch.setattr(sweep, "SIDE_BY_SIDE", 1)
    assert finish(runs, job) == [1] * 16, "15 runs, and the teacher of sft_distilled"
    single = pq.read_table(job.out / "results.parquet").to_pylist()
    for run in runs:
        sweep.shard_path(job.out, run).unlink()
    monkeypatch.setattr(sweep, "SIDE_BY_SIDE", 4)
    assert sorted(finish(runs, job)) == [1, 1, 1, 4, 4, 4]
    for run in runs:
        sweep.shard_path(job.out, run).unlink()
    assert finish(runs, job._replace(device="cpu:0")) == [5] * 3, "what is not named cpu, as a GPU, takes all"
    together = pq.read_table(job.out / "results.parquet").to_pylist()
    for one, other in zip(single, together, strict=True):
        numbers = {name: value for name, value in one.items() if isinstance(value, float)}
        assert {name: other[name] for name in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-5)
        assert {name: other[name] for name in one.keys() - numbers} == {n: one[n] for n in one.keys() - numbers}


@pytest.mark.slow
def test_a_worker_that_is_killed_leaves_the_finished_runs(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "SIDE_BY_SIDE", 1)
    job, runs = Job(images, tmp_path, 2, "cpu"), small_grid(rates=(1e-4, 1e-3, 1e-2))
    others = set(multiprocessing.active_children())

    def kill(count: int) -> None:
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()

    with pytest.raises(RunFailed, match="worker process died") as failure:
        sweep.sweep(runs, [], job, 1, kill)
    assert str(tmp_path / "runs") in str(failure.value)
    finished = [run for run in runs if sweep.shard_path(tmp_path, run).is_file()]
    assert 1 <= len(finished) < len(runs)
    monkeypatch.setattr(sweep, "ProcessPoolExecutor", Inline)
    counts: list[int] = []
    sweep.sweep(runs, [], job, 1, counts.append)
    assert len(counts) == len(runs) - len(finished)
    assert len(sweep.merge(runs, job)) == 1 + 2 * len(runs)
