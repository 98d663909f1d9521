"""`vla-razor report`: one page about several runs, in a real browser where there is one; single runs; bad input."""

import errno
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from tests.study.support import BASE, row, rows, write
from vla_razor import cli
from vla_razor.config import compose
from vla_razor.policies import Observations
from vla_razor.policies.load import load_model
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.rollouts import probe_set
from vla_razor.rollouts.probe_set import ProbeSet
from vla_razor.study import forecast
from vla_razor.verbs.study import report as report_verb


def report(*words: object) -> Result:
    return CliRunner().invoke(cli.app, ["report", *map(str, words)])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A table of the robot's with a film, and one of language models', and one run that failed."""
    robot = write(tmp_path_factory.mktemp("robot, 'one'"), [*rows(noise=0.02), _failed()])
    (robot / "videos").mkdir()
    (robot / "videos" / "side_by_side.mp4").write_bytes(b"film")
    spoken = [{**one, "domain": "language"} for one in rows(noise=0.02, shift=0.1)]
    return robot, write(tmp_path_factory.mktemp("language"), spoken)


def _failed() -> dict:
    return row("sft", 9, 0, 1.0, 0.0, status="failed", reason="the loss is <nan>", new=None, prior=None)


@pytest.fixture(scope="module")
def finished(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "run"
    result = report(*folders, f"out={out}")
    assert result.exit_code == 0, result.output + str(result.exception)
    assert "in no fit" in result.output and "forecasts of runs" in result.output
    return out


@pytest.mark.slow
def test_what_a_report_leaves(finished: Path) -> None:
    figures = {"1_trade_off", "2_law", "3_predictors", "4_prior_tasks", "5_learning_curves", "6_accuracy", "7_least_kl"}
    for domain in ("robot", "language"):
        drawn = {path.name for path in (finished / "plots" / domain).iterdir()}
        assert drawn == {f"{name}.{kind}" for name in figures for kind in ("png", "svg")}
    domains = json.loads((finished / "summary.json").read_text())["domains"]
    assert domains["robot"]["predictors"]["forward_kl_per_token"]["r2"] > 0.9
    page = (finished / "report.html").read_text()
    for domain in ("robot", "language"):
        assert domains[domain]["matched_kl"]["50%"]["sft"]["forward_kl_per_token"] >= 2, "0.1 of success a nat"
        assert f'aria-label="{domain}-7_least_kl"' in page or f"{domain}-7_least_kl" in page
    assert domains["language"]["residuals"]["sft"]["low"] > 0 > domains["language"]["residuals"]["rl"]["high"]
    assert set(domains["robot"]["validation"]["forward_kl_per_token"]) == {"method", "seed"}
    assert {path.name for path in finished.glob("law_*.json")} == {"law_robot.json", "law_language.json"}
    assert [forecast.load(finished, domain).domain for domain in ("robot", "language")] == ["robot", "language"]


@pytest.mark.slow
def test_the_page_asks_nobody_for_anything(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    addresses = re.findall(r"""(?:src|href)=["']([^"'#]+)|url\((?!#)([^)]+)\)""", page)
    assert addresses == [("data:video/mp4;base64,ZmlsbQ==", "")]
    assert "<script src" not in page and "@import" not in page
    assert "the loss is &lt;nan&gt;" in page


@pytest.mark.slow
def test_its_tables_sort_in_a_browser(finished: Path, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    click = """<script>const tables = document.querySelectorAll("table"), last = tables[tables.length - 1];
    const button = last.querySelectorAll("th button")[7]; button.click();
    const read = () => [...last.rows].slice(1).map((row) => parseFloat(row.cells[7].textContent)).join(" ");
    const up = read(); button.click();
    document.title = up + ";" + read() + ";" + document.documentElement.scrollWidth;</script>"""
    copy = tmp_path / "page.html"
    copy.write_text((finished / "report.html").read_text().replace("</body>", f"{click}</body>"))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=500,900",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    done = subprocess.run([browser, *options, "--dump-dom", str(copy)], capture_output=True, text=True, timeout=300)
    up, down, width = re.findall(r"<title>(.*)</title>", done.stdout)[0].split(";")
    lost = [float(number) for number in up.split()]
    assert len(lost) == 48 and lost == sorted(lost)
    assert [float(number) for number in down.split()] == lost[::-1]
    assert float(width) <= 500, "a phone need not scroll sideways"


@pytest.mark.slow
def test_few_runs_are_shown_without_a_law(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    few = write(tmp_path / "few", rows(seeds=2, noise=0.02))
    result = report(few, f"out={tmp_path / 'run'}")
    assert result.exit_code == 0, result.output
    assert "4 runs are too few for a law" in result.output and not list((tmp_path / "run").glob("law*"))
    page = (tmp_path / "run" / "report.html").read_text()
    for text in (" ".join(result.output.split()), page):
        assert "too few for a law" in text and "no interval: 4 runs, 10 are needed" in text
    (domain,) = json.loads((tmp_path / "run" / "summary.json").read_text())["domains"].values()
    assert (
        domain["predictors"]["forward_kl_per_token"]["low"]
        is domain["predictors"]["forward_kl_per_token"]["high"]
        is None
    )


@pytest.mark.slow
def test_a_law_of_spillover(tmp_path: Path) -> None:
    """Here forward KL says nothing and spillover, which may be negative, everything."""
    draw, spilled = np.random.default_rng(0), []
    for one in rows():
        x = draw.uniform(-1, 2) if one["step"] else 0.0
        spilled.append(one | {"spillover": x, "prior": BASE["prior"] - 0.1 * x})
    result = report(write(tmp_path / "runs", spilled), "measure=spillover", f"out={tmp_path / 'run'}")
    assert result.exit_code == 0, result.output
    fitted = forecast.load(tmp_path / "run", "robot")
    assert fitted.measure == "spillover" and fitted.r2 > 0.999 and fitted.reach[0] < -0.8 and fitted.reach[1] > 1.8
    assert fitted.forecast(1.0).forgotten == pytest.approx(0.1) and fitted.forecast(0.0).forgotten == pytest.approx(
        0, abs=1e-9
    )
    assert "with d the spillover" in (tmp_path / "run" / "report.html").read_text()
    assert "the law of spillover had not seen" in result.output
    without = report(write(tmp_path / "without", rows()), "measure=spillover", f"out={tmp_path / 'other'}")
    assert without.exit_code == 0 and "not every run has measured spillover" in without.output


def test_prior_tasks_that_only_some_were_asked(tmp_path: Path) -> None:
    """Language models of two tables, the one's prior tasks not the other's, and a run of no step."""
    parts = [[{**one, "model": model} for one in rows(seeds=1)] for model in ("A", "B")]
    for one in parts[1]:
        one["prior_other"] = one.pop("prior_open_top_drawer")
        one["step"] = 0
    folders = [write(tmp_path / name, part) for name, part in zip("ab", parts, strict=True)]
    result = report(*folders, f"out={tmp_path / 'run'}")
    assert result.exit_code == 0, result.output + str(result.exception)


@pytest.fixture(scope="module")
def alone(policy: Path, demos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of SFT, measured on a probe set that is in the cache, so that nothing is simulated; what `kl` says of it;
    and another one that has been stopped.
    """
    root = tmp_path_factory.mktemp("alone")
    opened, images = (
        PrismaticPolicy(load_model(policy)),
        np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8),
    )
    prompts = opened.prompt_ids(["pick can"] * 4)
    tokens = opened.support.start + torch.arange(7).repeat(4, 1)
    log_probs, hidden = probe_set.action_outputs(opened, Observations({"camera": images}), prompts, tokens)
    origin = probe_set.origin_of(opened, compose("kl").env, states=4, seed=0)
    probe = ProbeSet(Observations({"camera": images}), prompts, tokens, log_probs, torch.arange(4), origin, hidden)
    probe_set.save_to(root / "cache" / "probe_sets" / origin.key, probe)
    quiet = ["device=cpu", "logger=none", "probe_states=4"]
    sft = ["sft", f"policy={policy}", f"demos={demos}", "batch_size=24", "probe_every=1", "eval_episodes=0", *quiet]
    lines = [[*sft, f"out={root / 'sft'}"], ["kl", f"policy={root / 'sft'}", *quiet, f"out={root / 'kl'}"]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLA_RAZOR_CACHE", str(root / "cache"))
        for line in lines:
            result = CliRunner().invoke(cli.app, line)
            assert result.exit_code == 0, result.output + str(result.exception)
    shutil.copytree(root / "sft", root / "stopped")
    (root / "stopped" / "summary.json").unlink()
    return {name: root / name for name in ("sft", "kl", "stopped")}


def test_single_runs_have_a_page_of_what_they_have(alone: dict[str, Path], tmp_path: Path) -> None:
    result = report(*alone.values(), f"out={tmp_path / 'run'}")
    assert result.exit_code == 0, result.output + str(result.exception)
    said = " ".join(result.output.split())
    assert "sft, a run of sft: curves of forward KL, entropy, loss and a table of its summary" in said
    assert "kl, a run of kl: a table of its summary" in said
    assert "kl: no curve of success, forward KL, entropy, loss: not logged at two steps or more" in said
    assert f"stopped: no summary: the run has not finished; go on with: vla-razor resume {alone['stopped']}" in said
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<svg") == 2 and page.count("forward KL (nats an action)") >= 2
    moved = json.loads((alone["kl"] / "summary.json").read_text())["policies"]
    (entry,) = moved.values()
    assert f"{entry['forward_kl']['per_action']:.4g}" in page
    shown = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert shown["domains"] == {} and set(shown["runs"]) == {"sft", "kl", "stopped"}
    assert shown["runs"]["sft"]["curves"] == ["forward KL", "entropy", "loss"]


def test_a_single_run_beside_a_table(alone: dict[str, Path], tmp_path: Path) -> None:
    """The metrics of the run being those of an earlier version."""
    earlier = tmp_path / "earlier"
    shutil.copytree(alone["sft"], earlier)
    text = (earlier / "metrics.jsonl").read_text()
    for now, before in (("forward_kl_per_token", "forward_kl"), ("reverse_kl_per_token", "probe_reverse_kl")):
        text = text.replace(f'"{now}"', f'"{before}"')
    (earlier / "metrics.jsonl").write_text(text.replace('"entropy"', '"probe_entropy"'))
    result = report(write(tmp_path / "table", rows(seeds=1)), earlier, f"out={tmp_path / 'run'}")
    assert result.exit_code == 0, result.output + str(result.exception)
    shown = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(shown["domains"]) == {"robot"}
    assert shown["runs"]["earlier"]["curves"] == ["forward KL", "entropy", "loss"]


def test_a_full_disk_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(report_verb, "atomic_write", full)
    out = tmp_path / "run"
    result = report(write(tmp_path / "few", rows(seeds=1)), f"out={out}")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1, result.output
    assert f"out of disk while writing {out}" in result.stderr and f"vla-razor resume {out}" in result.stderr


def test_bad_input_is_one_message(tmp_path: Path) -> None:
    for name in ("empty", "begun", "broken"):
        (tmp_path / name).mkdir()
    for name in ("begun", "broken"):
        (tmp_path / name / "config.yaml").write_text("verb: sft\n")
    (tmp_path / "broken" / "metrics.jsonl").write_text("no metrics")
    for words, says in (
        ([tmp_path / "empty"], "there is no results table and no run"),
        ([tmp_path / "begun"], "nothing to report: no summary: the run has not finished"),
        ([tmp_path / "broken"], "is not what vla-razor writes"),
        ([tmp_path / "begun", tmp_path / "begun" / ".." / "begun"], "given twice"),
        ([], "vla-razor report DIR"),
        ([tmp_path / "nowhere"], "nowhere"),
    ):
        result = report(*words, f"out={tmp_path / 'run'}")
        assert result.exit_code == 2 and says in result.stderr, result.output
        assert result.stderr.count("\n") == 1 and not (tmp_path / "run").exists()
