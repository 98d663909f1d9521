"""Every experiment with every verb: what it trains and evaluates by is what the paper prints; else it is refused."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from vla_razor import config
from vla_razor.config import compose
from vla_razor.errors import UserError
from vla_razor.verbs.study import mnist
from vla_razor.verbs.study.language import Language
from vla_razor.verbs.study.robot import Robot

RATES = {
    "robot": (1e-6, 3e-6, 5e-6, 7e-6, 9e-6, 1e-5, 3e-5),  # B.2, Supervised Fine-Tuning; B.2, RL: the same
    "llm_sft": (1e-5, 3e-5, 5e-5, 7e-5, 9e-5),  # Table 2, SFT / SimPO
    "llm_grpo": (1e-5, 2e-5, 3e-5, 4e-5, 5e-5),  # Table 2, RL
}
Numbers = dict[str, tuple[Any, ...]]
"""Key -> the values that the paper has; several where it sweeps."""
TRAINED: Numbers = {
    "learning_rate": RATES["robot"],
    "max_grad_norm": (1,),  # B.2, Supervised Fine-Tuning
    "weight_decay": (0,),  # B.2, Supervised Fine-Tuning
    "warmup_steps": (10,),  # B.2, Supervised Fine-Tuning
    "schedule": ("constant",),  # B.2, Supervised Fine-Tuning: constant with warm-up
    "lora_rank": (0,),  # Section 3.1: the models are fine-tuned, and nothing is said of adapters
}
ACTS: Numbers = {
    "policy": ("openvla/openvla-7b",),  # B.2, first sentence
    "robot": ("google_robot",),  # B.2: SimplerEnv's pick and place, and drawers
    "dtype": ("bfloat16",),  # B.2, Supervised Fine-Tuning
}
BOTH: Numbers = {"new_episodes": (100,), "prior_episodes": (100,)}  # B.2, Data Collection: 100 random locations
ROBOT: dict[str, Numbers] = {
    "collect": {
        "robot": ACTS["robot"],
        "grid": ("10x10",),  # B.2, Data Collection
        "per_point": (10,),  # B.2, Supervised Fine-Tuning: 10 successful trajectories
    },
    "sft": {**ACTS, **TRAINED, "epochs": (1,), "batch_size": (16, 32, 64)},  # B.2, Supervised Fine-Tuning
    "rl": {
        **ACTS,
        **TRAINED,
        "grid": ("10x10",),  # B.2, RL: a grid point, those of the data collection
        "per_point": (5,),  # B.2, RL: 5 trajectories
        "kl_coefficient": (0,),  # B.2, RL: without explicit KL regularization
        "baseline": ("batch",),  # B.2, RL: a reward normalization baseline
        "batch_size": (16, 32, 64),  # B.2, RL: the same training config as SFT
        "iterations": (80,),  # not the paper's, which gives none: rl's own default
    },
    "distill": {**ACTS, **TRAINED, "batch_size": (16, 32, 64)},  # not the paper's method; B.2's numbers
    "eval": {**ACTS, "episodes": (100,)},  # B.2, Data Collection: 100 random locations
    "kl": {**ACTS, "base": ("openvla/openvla-7b",)},
    "interpolate": ACTS,
    "serve": ACTS,
    "demo": {**ACTS, **BOTH},
    "sweep": {**ACTS, **BOTH},
    "plasticity": ACTS,
    "sequence": ACTS,
}


def of_language(model: str) -> dict[str, Numbers]:
    told: Numbers = {"model": (model,), "dtype": ("bfloat16",)}  # Table 2 and C.2; Table 2
    trained: Numbers = {
        "warmup_steps": (50,),  # Table 2
        "max_grad_norm": (1,),  # Table 2
        "weight_decay": (0,),  # Table 2
        "max_steps": (0,),  # Table 2 gives epochs
        "lora_rank": (0,),
    }
    offline: Numbers = {
        "learning_rate": RATES["llm_sft"],
        "schedule": ("constant", "cosine"),  # Table 2, both with warm-up
        "epochs": (1, 2),  # Table 2
        "batch_size": (16, 32, 64, 128),  # Table 2
    }
    online: Numbers = {
        "learning_rate": RATES["llm_grpo"],
        "schedule": ("constant",),  # Table 2
        "epochs": (1,),  # Table 2
        "group_size": (64,),  # Table 2
        "prompts_per_step": (8,),  # Table 2
        "num_iterations": (1, 2),  # Table 2
    }
    evaluated: Numbers = {"examples": (0,), "eval_prompts": (0,)}  # B.1: accuracy on the benchmarks, which is of all
    return {
        "llm_sft": {**told, **trained, **offline},
        "llm_simpo": {**told, **trained, **offline},
        "llm_grpo": {**told, **trained, **online, "kl_coefficient": (0,)},  # Table 2: KL reg. 0
        "llm_reinforce": {**told, **trained, **online},
        "llm_eval": {**told, **evaluated},
        "llm_annotate": {**told, "samples": (16,)},  # B.1: up to 16 responses a prompt
        **{verb: {**told} for verb in ("llm_kl", "llm_probe", "llm_demo", "llm_sweep", "llm_sequence")},
    }


PAPER: dict[str, dict[str, Numbers]] = {
    "paper_robotics": ROBOT,
    "paper_robotics_grid": ROBOT,
    "paper_llm": of_language("Qwen/Qwen2.5-3B-Instruct"),  # Table 2
    "paper_llm_grid": of_language("Qwen/Qwen2.5-3B-Instruct"),
    "paper_llm_7b": of_language("Qwen/Qwen2.5-7B-Instruct"),  # C.2
    "paper_llm_14b": of_language("Qwen/Qwen2.5-14B-Instruct"),  # C.2
    "paper_mnist": {
        "mnist": {
            "rates": (15,),  # B.3, Hyperparameter sweep
            "lowest_rate": (3e-6,),  # B.3, Hyperparameter sweep
            "highest_rate": (1e-3,),  # B.3, Hyperparameter sweep
            "schedules": (["constant", "cosine"],),  # B.3, Hyperparameter sweep
            "lengths": ([1, 2],),  # B.3, Hyperparameter sweep
        }
    },
    "laptop": {"demo": {"new_episodes": (96,), "prior_episodes": (24,)}},  # not the paper's
}
MADE_OF_OTHERS = ("demo", "sweep", "sequence", "plasticity", "llm_demo", "llm_sweep", "llm_sequence")


def places(verb: str, settings: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """The verb itself, and the sections of those that it is made of."""
    yield verb, settings
    yield from ((str(key), settings[key]) for key in settings if key in config.VERBS)


def test_the_table_knows_every_experiment() -> None:
    assert set(PAPER) == {path.stem for path in (config.CONFIG_DIR / "experiment").glob("*.yaml")}


@pytest.mark.parametrize("verb", config.VERBS)
@pytest.mark.parametrize("experiment", PAPER)
def test_an_experiments_numbers_win_whatever_verb_is_given_it(experiment: str, verb: str) -> None:
    table = PAPER[experiment]
    if verb not in table:
        with pytest.raises(UserError, match=f"experiment={experiment} says nothing of {verb}"):
            compose(verb, [f"experiment={experiment}"])
        return
    settings = compose(verb, [f"experiment={experiment}"])
    for name, place in places(verb, settings):
        shared = set() if place is settings else {*config.common_keys(verb)} - place.keys()
        for key, values in table.get(name, {}).items():
            if key not in shared:
                assert place[key] in values, f"{name}.{key}"
    assert settings.keys() == compose(verb).keys()


@pytest.mark.parametrize("verb", MADE_OF_OTHERS)
def test_the_table_is_looked_up_for_each_verb_that_another_is_made_of(verb: str) -> None:
    experiment = "paper_llm" if verb.startswith("llm_") else "paper_robotics"
    looked_up = [name for name, _ in places(verb, compose(verb))][1:]
    assert len(looked_up) >= 3 and set(looked_up) <= PAPER[experiment].keys()


def test_the_command_line_wins_over_the_experiment_and_that_over_a_section() -> None:
    plain, words = compose("demo"), ["experiment=paper_robotics"]
    assert (plain.rl.grid, plain.sft.epochs, plain.new_episodes) == ("random", 7, 96)
    given = ["rl.grid=2x2", "new_episodes=5", "collect.policy=RT1"]
    for order in ([*words, *given], [*given, *words]):
        settings = compose("demo", order)
        assert (settings.axes["rl.grid"], settings.sft.epochs, settings.new_episodes) == (["2x2"], 1, 5)
        assert (settings.collect.policy, settings.policy) == ("RT1", "openvla/openvla-7b")
    assert settings.rl.save_every == plain.rl.save_every, "of which the experiment says nothing"
    swept = compose("sweep", [*words, "method=rl", "rl.grid=2x2"])
    assert [swept[verb].eval_episodes for verb in ("sft", "rl", "distill")] == [0, 0, 0], "the sweep evaluates them"
    assert Robot(swept, Path("out")).plan()[0].changes["grid"] == "2x2"


@pytest.mark.parametrize("verb", ["sft", "rl", "collect", "sweep"])
def test_the_papers_scene(verb: str) -> None:
    """But for the sign of x, which is a misprint (configs/robot/google_robot.yaml)."""
    settings = compose(verb, ["experiment=paper_robotics"])
    assert (settings.env.name, settings.env.make.robot) == ("pick_can", "google_robot")
    assert settings.env.grid == {"x": [-0.35, -0.12], "y": [-0.02, 0.42]}
    assert verb == "collect" or (settings.prior.name, len(settings.prior.tasks)) == ("drawer", 6)


@pytest.mark.parametrize(
    ("verb", "words", "trainings"),
    [
        ("llm_sweep", ["experiment=paper_llm_grid"], {"sft": 80, "grpo": 10}),
        ("llm_sweep", ["experiment=paper_llm_grid", "method=simpo,reinforce"], {"simpo": 80, "reinforce": 10}),
        ("llm_sweep", ["experiment=paper_llm_grid", "method=sft", "model=A,B,C", "task=science"], {"sft": 240}),
        ("llm_sweep", ["experiment=paper_llm_7b"], {"sft": 1, "grpo": 1}),
        ("sweep", ["experiment=paper_robotics_grid"], {"sft": 21, "rl": 21}),
        ("demo", ["experiment=paper_robotics"], {"sft": 1, "rl": 1}),
        ("demo", ["experiment=laptop"], {"sft": 9, "sft_far": 9, "rl": 6}),
        ("sweep", ["experiment=paper_robotics_grid", "method=sft", "seed=0,1,2"], {"sft": 63}),
    ],
)
def test_a_whole_grid_is_one_command(verb: str, words: list[str], trainings: dict[str, int]) -> None:
    config = compose(verb, words)
    planned = (Language if verb == "llm_sweep" else Robot)(config, Path("out")).plan()
    assert Counter(training.method for training in planned) == trainings
    settings = [(t.method, t.seed, *sorted(t.changes.items())) for t in planned]
    assert len(set(settings)) == len(settings), "no two are the same"


def test_the_grids_are_the_papers() -> None:
    planned = Language(compose("llm_sweep", ["experiment=paper_llm_grid"]), Path("out")).plan()
    sft, grpo = ([t.changes for t in planned if t.method == method] for method in ("sft", "grpo"))
    table = of_language("")
    for key in ("learning_rate", "schedule", "epochs", "batch_size"):
        assert {changes[key] for changes in sft} == set(table["llm_sft"][key]), key
    for key in ("learning_rate", "num_iterations"):
        assert {changes[key] for changes in grpo} == set(table["llm_grpo"][key]), key
    robot = Robot(compose("sweep", ["experiment=paper_robotics_grid"]), Path("out")).plan()
    for key in ("learning_rate", "batch_size"):
        assert {t.changes[key] for t in robot if t.method == "sft"} == set(ROBOT["sft"][key]), key
    assert {t.learning_rate for t in robot if t.method == "rl"} == set(RATES["robot"])


def test_the_papers_networks() -> None:
    """B.3: about 500 a method, mid-training checkpoints among them; here three of 180 runs."""
    settings = compose("mnist", ["experiment=paper_mnist"])
    runs = Counter(run.method for run in mnist.runs_of(settings))
    assert runs["grpo"] * settings.checkpoints == 540


def test_a_key_that_a_verb_does_not_have_is_refused() -> None:
    bad = OmegaConf.create({"sft": {"epoch": 1}, "sweep": {"sft": {"epoch": 1}}})
    experiment = config.Experiment("bad", bad)
    with pytest.raises(UserError, match=r"experiment=bad: sft has no key 'epoch'. Did you mean epochs"):
        experiment.change(compose("sft"), "sft")
    with pytest.raises(UserError, match=r"experiment=bad: sweep.sft has no key 'epoch'"):
        experiment.change(compose("sweep"), "sweep")
    shared = config.Experiment("shared", OmegaConf.create({"training": {"epochs": 7, "augmentation": 2}}))
    shared.change(settings := compose("sft"), "sft")
    assert (settings.epochs, settings.augmentation) == (7, 2), "each takes what it knows of what trainings share"
    shared.change(settings := compose("distill"), "distill")
    assert settings.augmentation == 2 and "epochs" not in settings
    with pytest.raises(UserError, match=r"experiment=x: training has no key 'epoch'"):
        config.Experiment("x", OmegaConf.create({"training": {"epoch": 7}})).change(compose("sft"), "sft")


def test_a_value_that_a_key_may_not_hold_is_refused() -> None:
    bad = config.Experiment("bad", OmegaConf.create({"training": {"betas": [2]}, "demo": {"rl": {"iterations": 0}}}))
    with pytest.raises(UserError, match=r"experiment=bad: training: bad value betas=\[2\]: expected two numbers in"):
        bad.change(compose("sft"), "sft")
    with pytest.raises(UserError, match=r"experiment=bad: demo.rl: bad value iterations=0: expected a whole number"):
        bad.change(compose("demo"), "demo")
