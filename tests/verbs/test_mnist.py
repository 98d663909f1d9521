"""The controlled experiment from the command line: a tiny one end to end, one killed on the way, and bad input."""

import errno
import json
import runpy
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.parity_mnist.support import Inline, few, write_images
from tests.verbs.support import CommandLine, metrics, until
from vla_razor import cli
from vla_razor.parity_mnist import sweep
from vla_razor.parity_mnist.analysis import PREDICTORS

ROOT = Path(__file__).parent.parent.parent
QUIET = ("logger=none", "device=cpu", "jobs=1")
METHODS = ("grpo_kl", "sft_2", "sft_distilled")
TINY = (
    *QUIET,
    f"methods=[{','.join(METHODS)}]",
    "rates=2",
    "highest_rate=1e-2",
    "lengths=[2]",
    "checkpoints=2",
    "widths=[]",
)
SPOILED = {"schema", "wall_seconds", "git_commit"}
"""What summaries of two equal runs may differ in."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), few((32, 48), (32, 12)))


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption, and without a process of its own; what it printed is in output.txt."""
    out = tmp_path_factory.mktemp("mnist") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "ProcessPoolExecutor", Inline)
        result = CliRunner().invoke(cli.app, ["mnist", *TINY, f"data_dir={images}", f"out={out}"])
    assert result.exit_code == 0, result.output
    (out / "output.txt").write_text(result.stdout)
    return out


@pytest.mark.slow
def test_what_a_run_leaves(finished: Path) -> None:
    files = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    figures = {"trade_off", "forgetting_against_kl", "accuracy_against_kl", "kl_at_matched_accuracy", "predictors"}
    figures |= {"similarity", "updates", "precision"}
    assert files >= {"config.yaml", "metrics.jsonl", "summary.json", "results.parquet", "table.txt", "report.html"}
    drawn = {path for path in files if path.startswith("plots/")}
    assert drawn == {f"plots/{name}.{kind}" for name in figures for kind in ("png", "svg")}
    for path in (finished / "plots").glob("*.png"):
        with Image.open(path) as image:
            image.verify()
    assert len(list((finished / "runs").glob("*.parquet"))) == 1 + 2 * len(METHODS)
    counts = {name: len(list((finished / name).glob("*.parquet"))) for name in ("dynamics", "precision", "teachers")}
    assert counts == {"dynamics": 2, "precision": 4, "teachers": 1}
    page = (finished / "report.html").read_text()
    assert page.count("<svg") == len(figures)
    assert all(name in page for name in (*METHODS, *PREDICTORS))
    assert [row["step"] for row in metrics(finished)] == [2 * len(METHODS)]
    table = (finished / "table.txt").read_text()
    assert all(name in table for name in (*METHODS, *PREDICTORS))
    assert "0 checkpoints diverged" in (finished / "output.txt").read_text()


@pytest.mark.slow
def test_the_summary_holds_what_the_contract_names(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    rows = pq.read_table(finished / "results.parquet").to_pylist()
    assert set(summary["methods"]) == set(METHODS)
    for name, entry in summary["methods"].items():
        own = [[row["new"], row["prior"]] for row in rows if row["method"] == name]
        assert len(own) == entry["models"] == 4
        assert entry["frontier"]
        assert all(pair in own for pair in entry["frontier"])
        assert entry["best_new"] == max(new for new, _ in own)
    assert set(summary["predictors"]) == set(PREDICTORS)
    everything = summary["protocols"]["all models"]
    assert everything == pytest.approx({name: entry["r2"] for name, entry in summary["predictors"].items()})
    assert summary["diverged"] == {}
    assert [teacher["seed"] for teacher in summary["teachers"]] == [0]
    assert {entry["method"] for entry in summary["precision"]} == set(summary["updates"]) == {"grpo", "sft_1"}
    assert set(summary["updates"]["grpo"]) == {"new", "prior"}
    assert all(entry.keys() == {"r2", "low", "high", "runs"} for entry in summary["predictors"].values())
    assert [row["step"] for row in rows] == [0] + [1, 2] * 6
    assert sorted({row["learning_rate"] for row in rows}) == pytest.approx([0, 3e-6, 1e-2])
    assert {row["status"] for row in rows} == {"done"}


@pytest.mark.slow
def test_the_documents_tables_are_made_from_the_summary(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(ROOT / "scripts" / "parity_mnist_tables.py"))["main"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["parity_mnist_tables.py", str(finished)])
        main()
    shown = capsys.readouterr().out
    summary = json.loads((finished / "summary.json").read_text())
    assert shown.count("## ") == 8
    assert f"| seed 0 | teacher (GRPO) | {summary['teachers'][0]['new']:.1%} |" in shown
    widths = [{line.count("|") for line in part.splitlines()[2:] if line} for part in shown.split("## ")[1:]]
    assert all(len(found) == 1 for found in widths), "every row of a table has as many cells"


@pytest.mark.slow
def test_a_run_killed_half_way_goes_on_to_the_same_bytes(
    images: Path, finished: Path, tmp_path: Path, vla_razor: CommandLine
) -> None:
    out = tmp_path / "run"
    process = vla_razor.start("mnist", *TINY, f"data_dir={images}", f"out={out}")
    shards = out / "runs"
    until(lambda: process.poll() is not None or (shards.is_dir() and len(list(shards.glob("*.parquet"))) >= 3))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # a worker that lived on would hold the pipes open
    assert process.returncode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in shards.glob("*.parquet")}
    assert not (out / "results.parquet").exists()
    shown = vla_razor.run("resume", out)
    assert all(line.strip() in shown.stdout for line in (out / "table.txt").read_text().splitlines())
    assert shown.stderr == ""
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "what was finished is left alone"
    assert (out / "results.parquet").read_bytes() == (finished / "results.parquet").read_bytes()
    one, other = (json.loads((folder / "summary.json").read_text()) for folder in (out, finished))
    assert {k: one[k] for k in one.keys() - SPOILED} == {k: other[k] for k in other.keys() - SPOILED}


CASES = {
    "an unknown method": ("methods=[grpo,sft1]", "methods: unknown method 'sft1'. Did you mean sft_1"),
    "a method twice": (
        "methods=[grpo,grpo]",
        "bad value methods=[grpo,grpo]: expected a list of names, as in [grpo,sft_1], each only once",
    ),
    "a seed twice": ("seeds=[1,1]", "bad value seeds=[1,1]: expected a list of whole numbers, each only once"),
    "no method": ("methods=[]", "bad value methods=[]: expected a list of names"),
    "rates in the wrong order": ("lowest_rate=1e-2", "lowest_rate=0.01 is above highest_rate=0.001"),
    "no rate": ("rates=0", "bad value rates=0"),
    "an unknown schedule": ("schedules=[linear]", "expected a list of constant and cosine"),
    "no length": ("lengths=[0]", "bad value lengths=[0]"),
    "a width that has no half": ("widths=[1]", "bad value widths=[1]"),
    "images that are missing": ("data_dir={missing}", "FashionMNIST/raw/train-images-idx3-ubyte.gz is missing"),
    "images that are damaged": ("data_dir={damaged}", "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz cannot be read"),
    "no network to download from": ("data_dir={nowhere}", "MNIST could not be downloaded into {nowhere}: no network"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    missing, damaged = (write_images(root / name, few((2, 2), (2, 2))) for name in ("missing", "damaged"))
    (missing / "FashionMNIST/raw/train-images-idx3-ubyte.gz").unlink()
    (damaged / "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz").write_bytes(b"\x1f\x8b\x08")
    return {"missing": missing, "damaged": damaged, "nowhere": root / "nowhere"}


@pytest.mark.parametrize(("setting", "message"), CASES.values(), ids=CASES)
def test_bad_input(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, message: str
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.MNIST", offline)
    offline.__name__ = "MNIST"
    out = tmp_path / "run"
    result = CliRunner().invoke(cli.app, ["mnist", *QUIET, setting.format(**folders), f"out={out}"])
    assert result.exit_code == 2, result.output
    assert message.format(**folders) in result.stderr
    assert result.stderr.startswith("vla-razor: ")
    assert result.stderr.count("vla-razor: ") == 1
    assert "Traceback" not in result.output
    assert not out.exists()


def test_nothing_is_downloaded_for_settings_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vla_razor.parity_mnist.data.download", lambda folder: pytest.fail("downloaded"))
    arguments = [*QUIET, "methods=[sft_3]", f"data_dir={tmp_path / 'images'}", f"out={tmp_path / 'run'}"]
    result = CliRunner().invoke(cli.app, ["mnist", *arguments])
    assert result.exit_code == 2
    assert "unknown method 'sft_3'" in result.stderr


def test_a_full_disk_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sweep, "sweep", full)
    result = CliRunner().invoke(cli.app, ["mnist", *QUIET, f"out={tmp_path / 'run'}"])
    assert result.exit_code == 1
    assert "out of disk" in result.stderr
    assert f"vla-razor resume {tmp_path / 'run'}" in result.stderr
    assert "Traceback" not in result.output


def test_a_sweep_that_diverged_altogether_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"run": "a", "seed": 0, "width": 512, "step": 1, "new": 0.5, "prior": 0.5} | dict.fromkeys(PREDICTORS, 0.0)
    rows = [facts | {"method": "base", "status": "done"}, facts | {"method": "grpo", "status": "diverged"}]
    monkeypatch.setattr(sweep, "sweep", lambda *_: None)
    monkeypatch.setattr(sweep, "merge", lambda *_: pa.Table.from_pylist(rows))
    result = CliRunner().invoke(cli.app, ["mnist", *QUIET, f"out={tmp_path / 'run'}"])
    assert result.exit_code == 1
    assert "diverged: the learning rates are too high" in result.stderr
    assert not (tmp_path / "run" / "summary.json").exists()
