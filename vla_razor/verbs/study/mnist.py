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

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from vla_razor.devices import device_named
from vla_razor.errors import RunFailed, UserError, nearest
from vla_razor.files import atomic_write, full_disk_reported
from vla_razor.parity_mnist import analysis, data, dynamics, figures, protocols, report, sweep, theory
from vla_razor.parity_mnist.methods import METHODS
from vla_razor.parity_mnist.model import WIDTH
from vla_razor.parity_mnist.tables import sheets
from vla_razor.parity_mnist.training import Settings
from vla_razor.progress import progress
from vla_razor.runs import Run
from vla_razor.verbs.study.comparison import as_text

FOLLOWED = ("grpo", "sft_1")
FOLLOWED_RATE = 3e-4


def run(config: DictConfig, run: Run) -> None:
    """Train whatever is missing of the sweep, then show what it found."""
    run.restore()
    runs = runs_of(config)  # first: bad settings are refused before anything is downloaded
    # An on-policy and an offline training, from the first base, whose single updates are examined.
    longest, seed = max(config.lengths), config.seeds[0]
    followed = [Settings(method, FOLLOWED_RATE, "constant", longest, seed) for method in FOLLOWED]
    folder = None if config.data_dir is None else Path(config.data_dir).expanduser().resolve()
    if folder and not (folder / "MNIST" / "raw").is_dir():
        data.download(folder)
    data.load(folder)  # here, before the workers do: bad images give one message
    job = sweep.Job(folder, run.path.resolve(), config.checkpoints, str(device_named(config.device)))
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
    seen = {one.method: sweep.read(sweep.dynamics_path(job.out, one)) for one in followed}
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
    console = Console()
    shown = [Table(*sheet.columns, title=sheet.title) for sheet in sheets(summary)]
    for table, sheet in zip(shown, sheets(summary), strict=True):
        for row in sheet.rows:
            table.add_row(*row)
        console.print(table)
    atomic_write(run.path / "table.txt", "\n".join(map(as_text, shown)).encode())
    diverged = summary["diverged"]
    named = f" ({', '.join(f'{name} {count}' for name, count in diverged.items())})" if diverged else ""
    kept = f"report in {run.path / 'report.html'}, rows in results.parquet"
    console.print(f"{sum(diverged.values())} checkpoints diverged{named}; {kept}", highlight=False)
    run.log(len(runs), models=len(points))
    run.finish(summary)


def runs_of(config: DictConfig) -> list[Settings]:
    """Every method at the paper's width, and SFT at the other widths. Raises UserError for an unknown method, and for
    bounds of the learning rates in the wrong order.
    """
    for name in config.methods:
        if name not in METHODS:
            raise UserError(f"methods: unknown method {name!r}. {nearest(name, METHODS)}")
    if config.lowest_rate > config.highest_rate:
        raise UserError(f"lowest_rate={config.lowest_rate} is above highest_rate={config.highest_rate}.")
    rates = sweep.learning_rates(config.lowest_rate, config.highest_rate, config.rates)
    settings = rates, config.schedules, config.lengths
    usual = sweep.grid(list(config.methods), *settings, [sweep.Origin(seed, WIDTH) for seed in config.seeds])
    others = [sweep.Origin(seed, width) for seed in config.seeds for width in config.widths if width != WIDTH]
    return usual + sweep.grid([analysis.WIDTH_STUDY], *settings, others)


def show_theory(seed: int = 0, steps: int = 1000) -> None:
    """Print where the three iterations of `parity_mnist.theory` lead, and what normalising the advantage changes."""
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
