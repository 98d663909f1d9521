"""The command line: both forms of a setting, exit statuses, one message, and a light start."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import vla_razor
from vla_razor import cli, config
from vla_razor.errors import RunFailed, UserError

HEAVY = ("torch", "mani_skill", "sapien", "transformers", "h5py", "matplotlib", "scipy")
runner = CliRunner()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--env", "drawer"], ["env=drawer"]),
        (["--env=drawer", "seed=3"], ["env=drawer", "seed=3"]),
        (["--per-point", "5", "grid=2x2", "--out", "a=b"], ["per_point=5", "grid=2x2", "out=a=b"]),
        (["--seed", "-1"], ["seed=-1"]),
        (["--env.make.robot", "panda"], ["env.make.robot=panda"]),
        (["--greedy", "seed=1"], ["greedy=true", "seed=1"]),
        (["--greedy", "false"], ["greedy=false"]),
        (["--train-vision"], ["train_vision=true"]),
    ],
)
def test_both_forms_become_one(arguments: list[str], expected: list[str]) -> None:
    assert cli.overrides(arguments) == expected


@pytest.mark.parametrize("verb", config.VERBS)
def test_both_forms_compose_the_same(verb: str) -> None:
    own = {"env": "drawer", "num_envs": 4}
    if verb == "mnist" or verb.startswith("llm_"):
        own = {"jobs": 4} if verb == "mnist" else {"task": "math", "data_dir": "x"}
    elif verb == "report":
        own = {"logger": "wandb"}
    elif verb == "import":
        own = {"source": "x"}
    elif verb == "export":
        own = {"demos": "x"}
    elif verb in ("interpolate", "stats", "save", "push"):
        own = {"policy": "x"}
    name = verb.split("_", 1) if verb.startswith("llm_") else [verb]
    words = [word for key, value in own.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    seed = [] if verb in ("report", "export") else ["seed=3"]  # which draw nothing
    flags = runner.invoke(cli.app, [*name, "--show", *(f"--{word}" for word in seed), "--out", "x", *words])
    pairs = runner.invoke(
        cli.app, [*name, "out=x", *(["seed=9"] if seed else []), *(f"{k}={v}" for k, v in own.items()), *seed, "--show"]
    )
    assert flags.exit_code == pairs.exit_code == 0, flags.output
    assert flags.stdout == pairs.stdout


def test_the_version_and_the_short_flag_for_help() -> None:
    assert runner.invoke(cli.app, ["--version"]).stdout == f"vla-razor {vla_razor.__version__}\n"
    short, long = (runner.invoke(cli.app, ["rl", flag]) for flag in ("-h", "--help"))
    assert short.exit_code == 0 and short.stdout == long.stdout


def test_the_help_lists_every_verb_in_its_group() -> None:
    lines = runner.invoke(cli.app, ["--help"], env={"COLUMNS": "300"}).stdout.splitlines()
    places = [lines.index(f"{title}:") for title in ("Learn", "Measure", "Study", "Language models", "Machine")]
    assert places == sorted(places)
    listed = [line[2:].partition("  ")[0] for line in lines[places[0] :] if line.startswith("  ") and line[2] != " "]
    assert listed == [*(verb.replace("llm_", "llm ") for verb in config.VERBS), "doctor", "assets", "resume"]


def test_the_help_names_the_environments_and_the_experiments() -> None:
    shown = runner.invoke(cli.app, ["rl", "--help"], env={"COLUMNS": "300"}).stdout
    assert "open_top_drawer | pick_can | FILE.yaml" in shown
    assert "experiment=null" in shown and "paper_robotics" in shown


@pytest.mark.parametrize(
    ("verb", "typed", "expected"),
    [
        ("rl", "learn", ["learning_rate="]),
        ("rl", "env=p", ["env=pick_can"]),
        ("rl", "prior=d", ["prior=drawer"]),
        ("sft", "loss=", ["loss=cross_entropy", "loss=openvla"]),
        ("eval", "greedy=", ["greedy=true", "greedy=false"]),
        ("demo", "experiment=l", ["experiment=laptop"]),
        ("llm sft", "max_st", ["max_steps="]),
        ("rl", "nothing", []),
    ],
)
def test_a_shell_completes_keys_and_values(verb: str, typed: str, expected: list[str]) -> None:
    words = {"_VLA_RAZOR_COMPLETE": "complete_bash", "COMP_WORDS": f"vla-razor {verb} {typed}"}
    words["COMP_CWORD"] = str(len(verb.split()) + 1)
    result = runner.invoke(cli.app, [], env=words, prog_name="vla-razor")
    assert result.stdout.split() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rl", "--env"], "--env needs a value"),
        (["rl", "--env", "--seed", "1"], "--env needs a value"),
        (["rl", "-e", "drawer"], "cannot read '-e'"),
        (["rl", "pick_can"], "cannot read 'pick_can'"),
        (["rl", "--env", "pick_cam"], "unknown env 'pick_cam'"),
        (["sft", "--lerning-rate", "1"], "unknown key 'lerning_rate'"),
        (["collect", "show"], "collect show takes one folder"),
        (["resume", "/nowhere"], "holds no run"),
    ],
)
def test_bad_arguments_exit_2_with_one_message(arguments: list[str], message: str) -> None:
    result = runner.invoke(cli.app, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("vla-razor:") == 1
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (UserError("no such thing"), 2, "vla-razor: no such thing\n"),
        (RunFailed("the loss is nan"), 1, "vla-razor: the loss is nan\n"),
        (KeyboardInterrupt(), 130, "vla-razor: interrupted; go on with: vla-razor resume {out}\n"),
    ],
)
def test_a_verbs_end_becomes_the_exit_status(monkeypatch, tmp_path, raised, status, message) -> None:
    class Recipe:
        @staticmethod
        def run(config, run):
            raise raised

    monkeypatch.setitem(sys.modules, "vla_razor.verbs.learn.sft", Recipe)
    out = tmp_path / "run"
    result = runner.invoke(cli.app, ["sft", f"out={out}"])
    assert result.exit_code == status
    assert result.stderr == message.format(out=out)
    assert out.exists() == (status != 2), "only a refused run leaves nothing behind"


def test_help_and_bad_input_import_nothing_heavy() -> None:
    code = f"""
import sys
from vla_razor.cli import app
for arguments in (["--help"], ["rl", "--help"], ["rl", "--env", "nowhere"], ["demo", "--show"]):
    try:
        app(arguments)
    except SystemExit:
        pass
print([name for name in {HEAVY} if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_help_names_every_key() -> None:
    result = runner.invoke(cli.app, ["rl", "--help"])
    assert result.exit_code == 0
    for key in config.compose("rl"):
        assert key in ("env", "verb") or f"{key}=" in result.stdout
