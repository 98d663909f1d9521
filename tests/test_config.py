"""The composed configuration: what is known, what is refused, and in which words."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vla_razor import config
from vla_razor.config import kinds, manual
from vla_razor.errors import UserError


@pytest.mark.parametrize("verb", config.VERBS)
def test_every_verb_composes(verb: str) -> None:
    settings = config.compose(verb)
    assert settings.verb == verb
    played = {"sequence": "all"}.get(verb, "pick_can")
    assert settings.out.startswith(f"runs/{verb}-{played}-" if "env" in settings else f"runs/{verb}-2")
    assert OmegaConf.create(config.to_yaml(settings)) == settings


@pytest.mark.parametrize("name", sorted(path.stem for path in (config.CONFIG_DIR / "env").glob("*.yaml")))
def test_every_environment_composes(name: str) -> None:
    settings = config.compose("eval", [f"env={name}"])
    scenes = config.scenes(settings.env)
    assert settings.env.name == name
    assert all("vla_razor/" in scene.id for scene in scenes)
    assert sum(len(scene.tasks) for scene in scenes) == {"all": 7, "drawer": 6}.get(name, 1)


@pytest.mark.parametrize("verb", ["sft", "rl", "sweep"])
def test_a_task_that_is_being_learned_is_no_prior_one(verb: str) -> None:
    settings = config.compose(verb, ["env=open_top_drawer"])
    assert len(settings.prior.tasks) == 5 and "open_top_drawer" not in settings.prior.tasks
    assert verb != "sweep" or settings.rl.prior.tasks == settings.prior.tasks
    assert config.compose(verb, ["env=drawer"]).prior is None
    assert config.compose(verb, ["env=drawer", "prior=pick_can"]).prior.tasks == ["pick_can"]


@pytest.mark.parametrize("verb", config.VERBS)
def test_every_default_is_of_its_kind_and_every_key_says_what_it_means(verb: str) -> None:
    settings = OmegaConf.to_container(config.compose(verb))
    assert isinstance(settings, dict) and set(settings) == {"verb", *config.VERBS[verb].definitions()}
    sections = {key: value for key, value in settings.items() if key in config.VERBS}
    for name, place in {verb: settings, **sections}.items():
        for key, definition in config.VERBS[name].definitions().items():
            assert key not in place or kinds.holds(definition.kind, place[key]), f"{name}: {key}={place[key]}"
            assert definition.meaning, key


def test_the_robots_are_those_that_have_a_file() -> None:
    assert config.choices("rl", "robot") == sorted(path.stem for path in (config.CONFIG_DIR / "robot").glob("*.yaml"))


def test_reinforce_alone_may_have_no_batch_size() -> None:
    assert config.compose("rl", ["batch_size=null"]).batch_size is None
    assert config.compose("rl", ["batch_size=16"]).batch_size == 16
    assert config.compose("plasticity", ["rl.batch_size=null"]).rl.batch_size is None
    for verb in ("sft", "distill"):
        with pytest.raises(UserError, match="bad value batch_size=null: expected a whole number, at least 1"):
            config.compose(verb, ["batch_size=null"])


def test_a_later_override_wins() -> None:
    settings = config.compose("sft", ["seed=1", "env=drawer", "seed=2", "env=pick_can"])
    assert (settings.seed, settings.env.name) == (2, "pick_can")


@pytest.mark.parametrize(
    "path", ["/a b/c=d~e,f", "runs/sft-pick_can-1", "openvla/openvla-7b", "C:\\x", "it's", "12", "[a]", "${x}"]
)
def test_any_path_needs_no_quoting(path: str) -> None:
    assert config.compose("eval", [f"policy={path}"]).policy == path


def test_values_take_their_type() -> None:
    settings = config.compose("rl", ["learning_rate=1", "betas=[0.8,0.9]", "gain_learning_rate=null", "policy='a b'"])
    assert settings.learning_rate == 1
    assert list(settings.betas) == [0.8, 0.9]
    assert settings.gain_learning_rate is None
    assert settings.policy == "a b"


@pytest.mark.parametrize(
    ("verb", "override", "message"),
    [
        ("sft", "lerning_rate=1", "unknown key 'lerning_rate' for sft. Did you mean learning_rate"),
        ("sft", "verb=rl", "unknown key 'verb' for sft."),
        ("sft", "env.make.robt=panda", "Did you mean env.make.robot"),
        ("demo", "sft.epoch=3", "Did you mean sft.epochs"),
        ("sft", "+new=1", "unknown key '+new'"),
        ("sft", "foo", "expected key=value"),
        ("rl", "env=pick_cam", "unknown env 'pick_cam'. Did you mean pick_can?"),
        ("rl", "env=pick_can,drawer", "unknown env 'pick_can,drawer'"),
        ("rl", "experiment=nothing", "unknown experiment 'nothing'"),
        ("rl", "learning_rate=abc", "bad value learning_rate=abc: expected a number above 0."),
        ("rl", "learning_rate=-1", "bad value learning_rate=-1"),
        ("rl", "learning_rate=nan", "bad value learning_rate=nan"),
        ("rl", "learning_rate=null", "bad value learning_rate=null"),
        ("rl", "learning_rate=1e-3,1e-4", "bad value learning_rate=1e-3,1e-4"),
        ("rl", "seed=1.5", "expected a whole number, at least 0."),
        ("rl", "seed=true", "expected a whole number, at least 0."),
        ("rl", "iterations=0", "expected a whole number, at least 1."),
        ("rl", "train_vision=1", "expected true or false."),
        ("rl", "baseline=mean", "expected grid_point | batch | one_zero."),
        ("rl", "grid=5by5", "expected columns x rows, as in 5x5; or random."),
        ("rl", "betas=[0.9]", "expected two numbers in [0, 1)"),
        ("rl", "robot=gogle_robot", "expected google_robot | panda"),
        ("rl", "image_size=[512]", "expected [height, width]"),
        ("rl", "sim_backend=physx", "auto | cpu | gpu"),
        ("rl", "prompt=chat", "expected template | bare"),
        ("rl", "device=tpu", "expected auto | cpu | cuda | cuda:N."),
        ("rl", "env.make.image_size=3", "expected a list"),
        ("rl", "env.make=3", "expected a mapping"),
        ("demo", "launcher=cloud", "expected here | local | ray | slurm"),
        ("plasticity", "seeds=[0,0]", "expected a list of whole numbers, each only once."),
        ("plasticity", "sft={epoch: 3}", "sft has no key 'epoch'. Did you mean epochs"),
        ("plasticity", "sft={epochs: 0}", "sft: bad value epochs=0: expected a whole number, at least 1."),
        ("plasticity", "rl.prior=drawer", "expected a suite"),
        ("llm_sft", "task=art", "expected math | science | tool | number."),
        ("eval", "temperature=0", "expected a number above 0 | null."),
    ],
)
def test_bad_overrides_are_refused(verb: str, override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        config.compose(verb, [override])
    assert message in str(error.value)


def test_a_robot_brings_its_scenes_area_and_camera_and_is_overridden_like_any_setting() -> None:
    settings = config.compose("rl", ["robot=google_robot", "env.make.orientation=upright", "image_size=[64,80]"])
    assert settings.env.make.robot == settings.prior.make.robot == "google_robot"
    assert (settings.env.grid.x, settings.env.grid.y) == ([-0.35, -0.12], [-0.02, 0.42])
    assert settings.env.make.orientation == "upright"
    assert settings.env.make.image_size == settings.prior.make.image_size == [64, 80]
    assert config.robot_of(settings.env) == "google_robot"
    assert config.compose("rl", ["env=drawer"]).env.make == {"robot": "panda", "image_size": [64, 64]}
    apart = config.compose("sweep", ["sim_backend=cpu"])
    assert apart.env.make.device == apart.prior.make.device == "cpu", "wherever the policy is"
    both = config.scenes(config.compose("eval", ["env=all", "robot=google_robot"]).env)
    assert {scene.make.robot for scene in both} == {"google_robot"}
    original = config.compose("eval", ["env=all", "robot=simpler_env", "env.drawer.make.station=a0"])
    ids = [scene.id for scene in config.scenes(original.env)]
    assert ids == ["vla_razor/SimplerPickCan-v1", "vla_razor/SimplerDrawer-v1"]
    assert config.robot_of(original.env) == "google_robot"
    with pytest.raises(UserError, match="say robot=google_robot, which also sets"):
        config.compose("rl", ["env.make.robot=google_robot"])


def test_sections_hold_a_verbs_own_keys() -> None:
    settings = config.compose("plasticity", ["sft.learning_rate=1e-3"])
    assert settings.sft.learning_rate == 1e-3
    assert settings.sft.batch_size == config.compose("sft").batch_size
    assert "seed" not in settings.sft
    assert "env" not in settings.eval
    assert "policy" not in settings.sft and settings.collect.policy == "scripted", "whom to imitate is collect's own"


def test_the_help_lists_every_key_once_the_verbs_own_first() -> None:
    lines = [line.strip() for line in config.describe("sft").splitlines()]
    names = [line.partition("=")[0] for line in lines if "=" in line.partition(" ")[0]]
    own = [str(key) for key in config.compose("sft") if key != "verb"]
    assert sorted(names) == sorted([*own, "experiment", "config_dir"]) == sorted(config.keys("sft"))
    assert names.index("demos") < names.index("learning_rate") < names.index("seed")
    assert "warmup_steps=10             optimizer steps in which the learning rates rise" in lines
    assert "learning_rate=3e-4" in [line.split()[0] for line in lines if line]


def test_the_reference_page_is_up_to_date() -> None:
    page = Path(__file__).parents[1] / "docs" / "configuration.md"
    assert page.read_text() == manual.reference(), "python scripts/make_configuration_page.py"
