"""`vla-razor mnist`: the controlled experiment on ParityMNIST (RL's Razor, Sections 4-6 and Appendix B.3).

A small network is pre-trained on digits by parity and on clothes, then fine-tuned on the digits alone by eight methods
at many settings; what it lost on the clothes is set against how far it moved. Departures from the paper:

- The annotations of an offline method are drawn once, not anew in every epoch.
- GRPO samples eight answers an image, and its KL penalty is computed in closed form. The paper gives neither.
- Pre-training takes 60 epochs at a learning rate of 1e-3; batches hold 64 images; AdamW without weight decay. The paper
  gives none of these.
- Activations are those of both hidden layers, on the new task's test set.
- Its R2 is over five of the eight methods (Appendix B.3), and compared with ours over those. Distillation is that of
  its Figure 9. It compares 1-0 REINFORCE and SimPO on Science Q&A alone: here they are ours.
- "Trained in bfloat16" is what `parity_mnist.precision` says; the paper does not say what it kept in which type.
- Of the KL of a step in Figure 10 both readings are kept (`parity_mnist.dynamics`). It gives no number for the
  correlation.
"""

from itertools import product
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from vla_razor.devices import device_named
from vla_razor.errors import RunFailed, UserError, nearest
from vla_razor.files import atomic_write, full_disk_reported
from vla_razor.parity_mnist import analysis, data, dynamics, figures, protocols, report, sweep, theory
from vla_razor.parity_mnist.methods import METHODS
from vla_razor.parity_mnist.model import WIDTH
from vla_razor.parity_mnist.training import Settings
from vla_razor.progress import progress
from vla_razor.runs import Run
from vla_razor.study import law
from vla_razor.verbs.study.comparison import as_text

FOLLOWED = ("grpo", "sft_1")
FOLLOWED_RATE = 3e-4


def run(config: DictConfig, run: Run) -> None:
    """Train whatever is missing of the sweep, then show what it found."""
    run.restore()
    runs, followed = _runs(config), _followed(config)  # first: nothing is downloaded for settings that are refused
    job = sweep.Job(_images(config), run.path.resolve(), config.checkpoints, str(device_named(config.device)))
    files = sweep.files(runs, followed, job)
    with progress("sweep", len(files), sum(path.is_file() for path in files)) as advance:

        def done(count: int) -> None:
            for _ in range(count):
                advance()

        advice = f"every finished run is kept. Free some space, then go on with: vla-razor resume {run.path}"
        with full_disk_reported(job.out, advice):
            sweep.sweep(runs, followed, job, config.jobs, done)
    table = sweep.merge(runs, job)
    points = analysis.points_of(table)
    if not any(point.width == WIDTH for point in points):
        raise RunFailed(f"Every run of width {WIDTH} diverged: the learning rates are too high.")
    seen = {one.method: pq.read_table(sweep.dynamics_path(job.out, one)) for one in followed}
    steps = {method: columns.to_pydict() for method, columns in seen.items()}
    summary = analysis.summarize(points) | {"cknna": analysis.matched_similarity(*seen.values())}
    summary["teachers"] = analysis.teachers(sweep.with_teachers(table, runs, job), points)
    summary["precision"] = analysis.precisions(sweep.precisions(followed, job))
    summary["updates"] = {method: dynamics.summarize(columns) for method, columns in steps.items()}
    summary["diverged"] = analysis.diverged_of(table)
    summary["protocols"] = protocols.compare([point for point in points if point.width == WIDTH])
    figures.draw(run.path / "plots", points, summary)
    figures.draw_dynamics(run.path / "plots", steps)
    figures.draw_precision(run.path / "plots", summary["precision"])
    report.write(run.path / "report.html", run.path / "plots", summary, {str(key): config[key] for key in config})
    present(Console(), run.path, summary)
    run.log(len(runs), models=len(points))
    run.finish(summary)


def show_theory(seed: int = 0, steps: int = 1000) -> None:
    """Prints where the three ways of `parity_mnist.theory` lead, and what normalising the advantage changes."""
    shown = Table("", "update", "expected reward", title="From one base to a policy that is always right")
    shown.add_column("KL from the KL-minimal\noptimal policy, nats", justify="right")
    shown.add_column("KL from the base,\nnats", justify="right")
    for path in theory.paths(seed, steps):
        for at in (0, 1, 10, 100, steps):
            name = path.name if at == 0 else ""
            shown.add_row(
                name, str(at), *(f"{float(part[at]):.6f}" for part in (path.reward, path.distance, path.base_kl))
            )
        shown.add_section()
    console = Console()
    console.print(shown)
    found = theory.normalization(seed)
    console.print(
        "Cosine of the expected update with the gradient of the expected reward, over inputs of different difficulty:",
        f"{found.mean_subtracted:.6f} with the group's mean subtracted, {found.divided_by_std:.6f} with the advantage "
        "divided by the group's standard deviation as well.",
        highlight=False,
    )


def present(console: Console, out: Path, summary: dict[str, Any]) -> None:
    """Prints the tables, and keeps them in table.txt."""
    tables = [methods_table(summary), predictors_table(summary), protocols_table(summary)]
    tables += [teachers_table(summary)] if summary["teachers"] else []
    tables += [precision_table(summary), updates_table(summary)]
    for table in tables:
        console.print(table)
    atomic_write(out / "table.txt", "\n".join(map(as_text, tables)).encode())
    diverged = summary["diverged"]
    named = f" ({', '.join(f'{name} {count}' for name, count in diverged.items())})" if diverged else ""
    kept = f"report in {out / 'report.html'}, rows in results.parquet"
    console.print(f"{sum(diverged.values())} checkpoints diverged{named}; {kept}", highlight=False)


def methods_table(summary: dict[str, Any]) -> Table:
    """What each method lost at the new-task accuracy that all of them reach."""
    shown = Table("method", "models", "best accuracy\non the new task", title="What each method learns and loses")
    shown.add_column(f"prior accuracy lost\nat {summary['matched_accuracy']:.0%} there", justify="right")
    shown.add_column("forward KL,\nnats", justify="right")
    for name, entry in summary["methods"].items():
        cells = f"{entry['forgotten_at_match']:.1%}", f"{entry['forward_kl_at_match']:.2f}"
        shown.add_row(name, str(entry["models"]), f"{entry['best_new']:.1%}", *cells)
    return shown


def predictors_table(summary: dict[str, Any]) -> Table:
    """R2 of every predictor beside the paper's, over the methods that it ran, over all, and over what moved less."""
    ranges = {"the paper's\nmethods": summary["predictors_of_paper_methods"]} | summary["predictors_by_range"]
    shown = Table("predictor of forgetting", "paper", title="R2 of a second-degree polynomial [95%]")
    for name in ranges:
        shown.add_column(name.replace("forward_kl<=inf", "all models").replace("forward_kl<=", "forward KL up to "))
    for name in analysis.PREDICTORS:
        found = [r.get(name) for r in ranges.values()]
        cells = [law.in_words(r2) if r2 else "" for r2 in found]
        shown.add_row(name, f"{analysis.PAPER[name]:.2f}" if name in analysis.PAPER else "", *cells)
    return shown


def protocols_table(summary: dict[str, Any]) -> Table:
    """R2 of the divergences, and who predicts best, under other choices of sweep and fit."""
    shown = Table(title="R2 where the sweep or the fit is another")
    shown.add_column("protocol", no_wrap=True)
    for name in (*protocols.SHOWN, "best"):
        shown.add_column(name.replace("_", " "))
    for name, by_measure in summary["protocols"].items():
        cells = [f"{by_measure[measure]:.2f}" if measure in by_measure else "" for measure in protocols.SHOWN]
        shown.add_row(name, *cells, protocols.best(by_measure))
    return shown


def teachers_table(summary: dict[str, Any]) -> Table:
    """What each base's teacher learned and lost, its own row, and the student nearest to it (paper, Figure 9)."""
    shown = Table("base", "policy", "new task", "prior accuracy lost", title="A teacher and the student nearest to it")
    shown.add_column("forward KL,\nnats", justify="right")
    for teacher in summary["teachers"]:
        for name, one in (("teacher", teacher), ("sft_distilled", teacher["student"])):
            cells = f"{one['new']:.1%}", f"{one['forgotten']:.1%}", f"{one['forward_kl']:.2f}"
            shown.add_row(f"seed {teacher['seed']}", name, *cells)
    return shown


def precision_table(summary: dict[str, Any]) -> Table:
    """The same trainings in float32 and in bfloat16: what they learned, and how many weights stayed as they were."""
    shown = Table("method", "learning\nrate", "precision", "new task", "lost", title="Trained in either precision")
    for name in ("forward KL,\nnats", "weights\nunchanged", "... rounded\nafterwards", "Jaccard", "by chance"):
        shown.add_column(name, justify="right")
    shown.add_column("... with as many\nof each size", justify="right")
    for entry in summary["precision"]:
        for name in analysis.PRECISIONS:
            one = entry[name]
            cells = [f"{one[key]:.1%}" for key in ("new", "forgotten")] + [f"{one['forward_kl']:.3f}"]
            cells += [f"{one[key]:.1%}" for key in ("unchanged", "unchanged_rounded")]
            cells += [analysis.cell(one[key]) for key in ("jaccard", "chance", "chance_by_size")]
            shown.add_row(entry["method"], f"{entry['learning_rate']:g}", name, *cells)
    return shown


def updates_table(summary: dict[str, Any]) -> Table:
    """Figure 10 in numbers: whether updates that move the policy more follow either task's gradient more."""
    shown = Table("method", "gradient of", "", title="Correlation of an update's KL and its cosine [95%]")
    for name in ("growth of\nforward KL", "KL from the policy\nbefore it"):
        shown.add_column(name, justify="right")
    for method, by_task in summary["updates"].items():
        for (task, by_shift), kind in product(by_task.items(), dynamics.COEFFICIENTS):
            found = [by_shift.get(shift, {}).get(kind) for shift in dynamics.SHIFTS]
            cells = [f"{one['value']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]" if one else "" for one in found]
            shown.add_row(method, f"the {task} task", kind.title(), *cells)
    return shown


def _images(config: DictConfig) -> Path | None:
    """The folder of the images, filled if need be; None for the package's own. Raises UserError if they are bad."""
    if config.data_dir is None:
        return None
    folder = Path(config.data_dir).expanduser().resolve()
    if not (folder / "MNIST" / "raw").is_dir():
        data.download(folder)
    data.load(folder)
    return folder


def _methods(config: DictConfig) -> list[str]:
    for name in config.methods:
        if name not in METHODS:
            raise UserError(f"methods: unknown method {name!r}. {nearest(name, METHODS)}")
    return list(config.methods)


def _runs(config: DictConfig) -> list[Settings]:
    """Every method at the paper's width, and SFT at the other widths."""
    settings = _rates(config), config.schedules, config.lengths
    usual = sweep.grid(_methods(config), *settings, [sweep.Origin(seed, WIDTH) for seed in config.seeds])
    others = [sweep.Origin(seed, width) for seed in config.seeds for width in config.widths if width != WIDTH]
    return usual + sweep.grid([analysis.WIDTH_STUDY], *settings, others)


def _followed(config: DictConfig) -> list[Settings]:
    """An on-policy and an offline training whose single updates are looked at, from the first base."""
    return [Settings(method, FOLLOWED_RATE, "constant", max(config.lengths), config.seeds[0]) for method in FOLLOWED]


def _rates(config: DictConfig) -> list[float]:
    if config.lowest_rate > config.highest_rate:
        raise UserError(f"lowest_rate={config.lowest_rate} is above highest_rate={config.highest_rate}.")
    return sweep.learning_rates(config.lowest_rate, config.highest_rate, config.rates)
