"""From a verb and its overrides to one checked configuration.

Every verb has a file `configs/<verb>.yaml`, and `env` is a group. Hydra composes the files; an experiment
(`configs/experiment/<name>.yaml`) changes them; `robot` then fills in what a scene looks like with that robot
(`configs/robot/<name>.yaml`, by Gymnasium id). The overrides are checked here (unknown keys and names, types, ranges),
because Hydra knows no types without a schema and texts such as paths would need quoting.

From the weakest to the strongest: a verb's own defaults; what a verb that is made of others, such as `sweep`, has
instead of them in its sections; the experiment; the command line.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Transformer
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from vla_razor import suites
from vla_razor.errors import UserError, nearest

_PACKAGE = Path(__file__).resolve().parent
CONFIG_DIR = next(path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir())
GROUPS = {"env": "env", "prior": "env@prior"}  # as Hydra names them
SWEEPS = ("demo", "sweep", "llm_demo", "llm_sweep")  # verbs whose keys may take several values
FRAGMENTS = ("common", "training", "llm_common", "llm_training")  # files that verbs are composed of


class Rule(NamedTuple):
    """What a key may hold: a type, a test on the value, and both in words."""

    type: type
    holds: Callable[[Any], bool]
    expected: str


def _one_of(*names: str) -> Rule:
    return Rule(str, lambda value: value in names, " | ".join(names))


def _distinct(holds: Callable[[Any], bool], expected: str, fewest: int = 1) -> Rule:
    """A list of values for each of which something is run; the same one twice would count twice."""

    def fits(values: Any) -> bool:
        return len(values) >= fewest and all(map(holds, values)) and len(set(values)) == len(values)

    return Rule(list, fits, f"{expected}, each only once")


_TEXT = Rule(str, lambda value: value != "", "a text")
_SWITCH = Rule(bool, lambda _: True, "true or false")
_COUNT = Rule(int, lambda value: value >= 1, "a whole number, at least 1")
_WHOLE = Rule(int, lambda value: value >= 0, "a whole number, at least 0")
_POSITIVE = Rule(float, lambda value: 0 < value < float("inf"), "a number above 0")
_NUMBER = Rule(float, lambda value: 0 <= value < float("inf"), "a number, at least 0")
_MAPPING = Rule(dict, lambda _: True, "a mapping, as in {a: 1}")
_BUDGET = Rule(float, lambda value: 0 < value < 1, "a number above 0 and below 1")
_SHARE = Rule(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
_GRID = Rule(
    str,
    lambda value: re.fullmatch(r"[1-9]\d*x[1-9]\d*|random", value) is not None,
    "columns x rows, as in 5x5; or random",
)
_SENTENCES = _distinct(
    lambda v: type(v) is str and v != "", "a list of instructions, as in [open top drawer]", fewest=0
)
_SEEDS = _distinct(lambda v: type(v) is int and v >= 0, "a list of whole numbers")
_LENGTHS = _distinct(lambda v: type(v) is int and v >= 1, "a list of whole numbers, at least 1")
_WIDTHS = _distinct(lambda v: type(v) is int and v >= 2, "a list of whole numbers, at least 2", fewest=0)
_SCHEDULES = _distinct(lambda v: v in ("constant", "cosine"), "a list of constant and cosine, as in [cosine]")
_NAMES = _distinct(lambda v: type(v) is str, "a list of names, as in [grpo,sft_1]")
_SIZE = Rule(
    list,
    lambda value: len(value) == 2 and all(type(v) is int and v > 0 for v in value),
    "[height, width], as in [512,640]",
)
_BETAS = Rule(
    list, lambda value: len(value) == 2 and all(0 <= v < 1 for v in value), "two numbers in [0, 1), as in [0.9,0.99]"
)
_DEVICE = Rule(
    str,
    lambda value: re.fullmatch(r"auto|cpu|cuda(:\d+)?|rtx4090|a100-40|l40s|a100-80|h100|h200", value) is not None,
    "auto | cpu | cuda | cuda:N",
)

_KEYS = {
    _TEXT: "out policy against base demos unnorm_key data_dir embeddings model teacher endpoint "
    "api_key_variable annotations law replay",
    _SWITCH: "greedy train_vision dry_run direct easy rejected gradient_checkpointing run_code",
    _COUNT: "num_envs num_workers micro_batch_size batch_size epochs iterations per_point max_attempts save_every "
    "episodes new_episodes prior_episodes probe_states checkpoints jobs rates group_size prompts_per_step "
    "num_iterations updates max_new_tokens max_length paragraphs probe_prompts samples concurrency requests_per_minute "
    "points",
    _WHOLE: "seed eval_episodes lora_rank warmup_steps augmentation probe_every videos max_steps "
    "max_examples eval_prompts examples staleness",
    _POSITIVE: "learning_rate gain_learning_rate eps max_grad_norm lora_alpha temperature lowest_rate highest_rate "
    "timeout",
    _NUMBER: "weight_decay kl_coefficient spillover_coefficient margin prefix_jitter",
    _MAPPING: "cold_start slurm far oft",
}
RULES: dict[str, Rule] = {
    **{key: rule for rule, keys in _KEYS.items() for key in keys.split()},
    "seeds": _SEEDS,
    "lengths": _LENGTHS,
    "widths": _WIDTHS,
    "schedules": _SCHEDULES,
    "methods": _NAMES,
    "method": _one_of("rl", "sft"),
    "other_instructions": _SENTENCES,
    "prior_tasks": _NAMES,
    "runs": _distinct(lambda v: type(v) is str, "a list of folders", fewest=0),
    "betas": _BETAS,
    "grid": _GRID,
    "noise": _SHARE,
    "style": _one_of("direct", "across", "sideways", "tucked", "steep"),
    "guidance": _SHARE,
    "forgetting_budget": _BUDGET,
    "replay_share": _BUDGET,
    "on_budget": _one_of("stop", "lower"),
    "device": _DEVICE,
    "dtype": _one_of("float32", "bfloat16"),
    "robot": _one_of(*sorted(path.stem for path in (CONFIG_DIR / "robot").glob("*.yaml"))),
    "image_size": _SIZE,
    "sim_backend": _one_of("auto", "cpu", "gpu"),
    "prompt": _one_of("template", "bare"),
    "logger": _one_of("tensorboard", "wandb", "trackio", "none"),
    "schedule": _one_of("constant", "cosine"),
    "loss": _one_of("cross_entropy", "openvla"),
    "normalizer": _one_of("length", "tokens", "episodes"),
    "baseline": _one_of("grid_point", "batch", "one_zero"),
    "task": _one_of("math", "science", "tool"),
    "log_probs": _one_of("sum", "mean"),
    "use_vllm": _one_of("auto", "true", "false"),
    "shares": _distinct(lambda v: type(v) in (int, float) and 0 <= v <= 1, "a list of numbers from 0 to 1"),
    "interpolated": _distinct(lambda v: type(v) in (int, float) and 0 < v < 1, "a list of numbers in (0, 1)", fewest=0),
    "measure": _one_of("forward_kl_per_token", "spillover", "activation_l2"),
    "launcher": _one_of("here", "local", "ray", "slurm"),
}
GONE = {
    "demo": {
        "seeds": "seed=0,1,2",
        "sft_runs": "sft.learning_rate=1e-4,3e-4 or any other of its keys",
        "rl_runs": "rl.learning_rate=1e-4,3e-4 or any other of its keys",
    },
    "llm_demo": {"seeds": "seed=0,1,2"},
}
"""By verb: keys of earlier versions, and how one says now what they said."""

NULLABLE = {"out", "data_dir", "prior", "unnorm_key", "temperature", "demos", "against", "base", "gain_learning_rate"}
NULLABLE |= {
    "prompt",
    "image_size",
    "embeddings",
    "teacher",
    "endpoint",
    "annotations",
    "cold_start",
    "forgetting_budget",
    "law",
    "replay",
    "far",
    "oft",
    "rl.batch_size",  # of this verb alone
}


@cache
def verbs() -> tuple[str, ...]:
    """The verbs that have a configuration."""
    return tuple(sorted(path.stem for path in CONFIG_DIR.glob("*.yaml") if path.stem not in FRAGMENTS))


def compose(verb: str, overrides: Iterable[str] = ()) -> DictConfig:
    """The configuration of `verb` under `overrides` ("key=value", a later one wins), with `out` filled in.

    An experiment holds settings by verb, or by the files that several verbs are composed of, such as `training`;
    each verb takes those of its files, then its own. In `demo`, a key named like a verb holds that verb's settings.

    Raises `UserError` for an unknown key, environment or experiment, for an experiment that has nothing for the verb,
    and for a value of the wrong type or out of range.
    """
    values = dict(_split(override) for override in overrides)
    folder = values.pop("config_dir", None)
    for group in GROUPS:
        if group in values:
            values[group] = _suite_of(values[group], folder)
    axes = _axes(values) if verb in SWEEPS else {}
    experiment = Experiment.named(values.pop("experiment", None))
    config = _compose_files(verb, {group: values.pop(group) for group in GROUPS if group in values})
    sections = [str(key) for key in config if key in verbs()]
    experiment.check(verb, sections)
    for section in sections:
        config[section] = _section(section, config[section], experiment)
    experiment.change(config, verb)
    if verb in SWEEPS:
        axes |= {key: [values.pop(key)] for key in list(values) if _is_of_trainings(config, key)}
    for key in [key for key in ("robot", "image_size", "sim_backend") if key in values]:
        _assign(config, verb, key, values.pop(key))
    _place_robot(config)
    for key, text in values.items():
        _assign(config, verb, key, text)
    _check_robot(config)
    _check_tasks(config)
    _set_prior_apart(config)
    if axes:
        config.axes = {**_kept_axes(config, axes), **axes}
    if config.get("out", "given") is None:
        subject = f"{verb}-{config.env.name}" if "env" in config else verb
        config.out = f"runs/{subject}-{datetime.now():%Y%m%d-%H%M%S}"
    return config


def _suite_of(name: str, folder: str | None) -> str:
    """The choice of an environment: the file of a suite where `folder`/env has one of that name, else as it stands."""
    if folder is None:
        return name
    if not Path(folder).is_dir():
        raise UserError(f"config_dir={folder}: no such folder; expected one with env/NAME.yaml.")
    path = Path(folder) / "env" / f"{name}.yaml"
    return str(path) if path.is_file() else name


class Experiment:
    """What an experiment's file says: settings by verb, or by a file that verbs are composed of."""

    def __init__(self, name: str, settings: DictConfig) -> None:
        self.name, self.settings = name, settings

    @classmethod
    def named(cls, name: str | None) -> "Experiment":
        """Raises `UserError` where there is none of that name."""
        if name is None:
            return cls("", OmegaConf.create())
        known = [path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml")]
        if name not in known:
            raise UserError(f"unknown experiment {name!r}. {nearest(name, known)}")
        return cls(name, _composed(f"experiment/{name}"))

    def check(self, verb: str, sections: Iterable[str]) -> None:
        """Raises `UserError` where it says nothing of a verb nor of those that it is made of."""
        spoken_of = {part for one in (verb, *sections) for part in (*_fragments(one), one)}
        if self.name and spoken_of.isdisjoint(self.settings):
            named = ", ".join(map(str, self.settings))
            raise UserError(f"experiment={self.name} says nothing of {verb}: it has settings for {named}.")

    def change(self, config: DictConfig, verb: str, *, known_alone: bool = False) -> None:
        """Sets in `config` what it says of the verb: of a section (`known_alone`) the keys that stand there, else all.
        What it says of a file that verbs are composed of goes to those that know the key.

        Raises `UserError` for a key that the verb, or every verb that is composed of the file, does not have.
        """
        for part in (*_fragments(verb), verb):
            said = self.settings.get(part, {})
            left_out = {key for key in said if key not in config and (known_alone or _known_elsewhere(part, key))}
            self._set(config, part, {key: value for key, value in said.items() if key not in left_out})

    def _set(self, config: DictConfig, part: str, said: Mapping[Any, Any]) -> None:
        for key, value in said.items():
            if key not in config:
                known = map(str, config)
                raise UserError(f"experiment={self.name}: {part} has no key {key!r}. {nearest(str(key), known)}")
            if key in verbs():
                self._set(config[key], f"{part}.{key}", value)
            else:
                config[key] = value


def to_yaml(config: DictConfig) -> str:
    """The configuration as a file that `OmegaConf.load` reads back."""
    return OmegaConf.to_yaml(config)


def keys(verb: str) -> list[str]:
    """The keys of a verb, as they are given on the command line; empty for none that has a configuration."""
    if verb not in verbs():
        return []
    own = [str(key) for key in _composed_once(verb) if key != "verb"]
    return [*own, "experiment", *(["config_dir"] if "env" in own else [])]


def choices(verb: str, key: str) -> list[str]:
    """The values that a key is known to take, where they can be counted: names of files, or of a rule."""
    if key == "experiment":
        spoken_of = {verb, *_fragments(verb)}
        return [name for name, sections in _experiments().items() if not spoken_of.isdisjoint(sections)]
    if key in GROUPS:
        return sorted(path.stem for path in (CONFIG_DIR / "env").glob("*.yaml"))
    rule = _rule(key)
    if rule is _SWITCH:
        return ["true", "false"]
    return rule.expected.split(" | ") if rule and " | " in rule.expected else []


def common_keys(verb: str) -> list[str]:
    """The keys that every verb of its kind has, be they about policies or language models."""
    name = "llm_common" if verb.startswith("llm_") else "common"
    return [str(key) for key in OmegaConf.load(CONFIG_DIR / f"{name}.yaml")]


def describe(verb: str) -> str:
    """The verb's keys with their defaults and meaning, a line each, as its files have them."""
    own = (CONFIG_DIR / f"{verb}.yaml").read_text()
    texts = [own, *((CONFIG_DIR / f"{name}.yaml").read_text() for name in reversed(_fragments(verb)))]
    rows: dict[str, tuple[str, str]] = {}
    for key, value, meaning in re.findall(r"^(\w+): *([^#\n]*?) *(?:# *(.*))?$", "\n".join(texts), re.MULTILINE):
        first_value, first_meaning = rows.get(key, (value, ""))
        rows[key] = (first_value, first_meaning or meaning)
    scenes_known = " | ".join(choices(verb, "env"))
    for name in re.findall(r"env: *(\w+)", own.partition("\n")[0]):
        rows["env"] = (name, f"{scenes_known} | FILE.yaml | a name in config_dir/env")
    for key, name in re.findall(r"env@(\w+): *(\w+)", own.partition("\n")[0]):
        rows[key] = (name, "whose tasks forgetting is measured on: an env, or null")
    if known := choices(verb, "experiment"):
        rows["experiment"] = ("null", " | ".join(known))
    hidden = ("defaults", "verb")
    return "\n".join(
        f"{key}={value}".ljust(27) + f" {meaning}" for key, (value, meaning) in rows.items() if key not in hidden
    )


@cache
def _experiments() -> dict[str, list[str]]:
    """By experiment, the verbs and the files that verbs are composed of for which its file has settings."""
    files = sorted((CONFIG_DIR / "experiment").glob("*.yaml"))
    return {path.stem: re.findall(r"^(\w+):", path.read_text(), re.MULTILINE) for path in files}


def scenes(env: DictConfig) -> list[DictConfig]:
    """The environments of an `env` configuration: itself where it names a Gymnasium id, else its parts (`all`)."""
    return [env] if "id" in env else [part for part in env.values() if isinstance(part, DictConfig)]


def environments(config: DictConfig) -> list[DictConfig]:
    """Every scene in a configuration, those of a demo's sections included."""
    envs = [config[key] for key in ("env", "prior") if config.get(key)]
    sections = [config[key] for key in config if key in verbs()]
    return [scene for env in envs for scene in scenes(env)] + [s for part in sections for s in environments(part)]


def robot_of(env: DictConfig) -> str:
    """Who acts in the scenes of an `env` configuration."""
    return robot_in(scenes(env)[0].make)


def robot_in(make: Mapping[str, Any]) -> str:
    """Who acts in a scene that is made with these arguments; those that run SimplerEnv itself know its robot alone, and
    a suite's own is called by its name.
    """
    suite = suite_in(make)
    return suite["name"] if suite else make.get("robot", "google_robot")


def suite_in(make: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The suite of a user's own that a scene's arguments hold, if they do."""
    # Not `in make`: for a key that is not there OmegaConf raises and catches, and so keeps the callers' frames alive.
    return make["suite"] if "suite" in make.keys() else None  # noqa: SIM118


def is_switch(key: str) -> bool:
    """Whether `key` is true or false, so that the flag alone means true."""
    return _rule(key) is _SWITCH


def _axes(values: dict[str, str]) -> dict[str, list[str]]:
    """Takes out of the overrides what takes several values, in Hydra's grammar, and the methods."""
    axes: dict[str, list[str]] = {}
    for key, text in list(values.items()):
        try:
            override = OverridesParser.create().parse_override(f"{key}={text}")
        except HydraException:  # a path, or the like
            continue
        if override.is_sweep_override():
            axes[key] = [str(value) for value in override.sweep_iterator(Transformer.str)]
        elif key == "method":
            axes[key] = [text]
        if key in axes:
            del values[key]
    return axes


def _kept_axes(config: DictConfig, given: Mapping[str, list[str]]) -> dict[str, Any]:
    """Of the axes that an experiment has, those of methods that were not chosen on the command line fall away. A method
    is called as the verb that trains by it, or begins with its name: sft_own.
    """
    chosen = {method.partition("_")[0] for method in given.get("method", config.axes.method)}
    sections = {key: str(key).rpartition(".")[0].removeprefix("llm_") for key in config.axes}
    return {str(key): config.axes[key] for key, section in sections.items() if section in ("", *chosen)}


def _is_of_trainings(config: DictConfig, key: str) -> bool:
    """Whether a key of a sweep is of its trainings, of one or of all: an axis then, also with a single value."""
    section, _, name = key.rpartition(".")
    trainings = [part for part in config if part in verbs() and "learning_rate" in config[part]]
    chosen = [section] if section else trainings if key not in config else []
    return any(part in trainings and name in config[part] for part in chosen)


def _place_robot(config: DictConfig) -> None:
    """Completes the scenes with what `config.robot`, `config.image_size` and `config.sim_backend` say of them."""
    if "robot" not in config:
        return
    settings = OmegaConf.load(CONFIG_DIR / "robot" / f"{config.robot}.yaml")
    for scene in environments(config):
        with open_dict(scene):
            scene.merge_with(settings.get(scene.id, {}))
            if config.image_size is not None:
                scene.make.image_size = config.image_size
            if config.sim_backend != "auto":
                scene.make.device = {"cpu": "cpu", "gpu": "cuda"}[config.sim_backend]


def _check_robot(config: DictConfig) -> None:
    for scene in environments(config):
        robot = scene.make.get("robot", config.robot)
        if robot != config.robot:
            raise UserError(f"env.make.robot={robot}: say robot={robot}, which also sets the scene's area and camera.")


def _check_tasks(config: DictConfig) -> None:
    """A scene has the tasks that the files of its id name; what those of a user's own id are, nobody knows here."""
    for scene in environments(config):
        asked = [scene.tasks] if isinstance(scene.tasks, str) else list(scene.tasks)
        known = _known_tasks().get(_unversioned(scene.id), [])
        if not asked or len(set(asked)) < len(asked) or (known and not set(asked) <= set(known)):
            said = f"[{','.join(map(str, asked))}]"
            has = ", ".join(known) or "tasks of its own"
            raise UserError(f"env.tasks={said}: expected some of what {scene.id} has, each once: {has}.")


@cache
def _known_tasks() -> dict[str, list[str]]:
    """What the files of each Gymnasium id name, whatever its version."""
    files = [OmegaConf.load(path) for path in (CONFIG_DIR / "env").glob("*.yaml")]
    return {_unversioned(file.id): list(file.tasks) for file in files if "id" in file}


def _unversioned(env_id: str) -> str:
    """A Gymnasium id without its version; SimplerEnv's own task is the same one."""
    return re.sub(r"-v\d+$", "", env_id.replace("/Simpler", "/"))


def _set_prior_apart(config: DictConfig) -> None:
    """A task that is being learned is no prior one; without any left there are none."""
    learned = {task for scene in scenes(config.env) for task in scene.tasks} if "env" in config else set()
    for part in [config, *(config[key] for key in config if key in verbs())]:
        if part.get("prior"):
            for scene in scenes(part.prior):
                scene.tasks = _without(scene.tasks, learned)
            if not any(scene.tasks for scene in scenes(part.prior)):
                part.prior = None


def _without(tasks: Any, learned: set[str]) -> Any:
    if isinstance(tasks, DictConfig):
        return {task: options for task, options in tasks.items() if task not in learned}
    return [task for task in tasks if task not in learned]


def _split(override: str) -> tuple[str, str]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"cannot read {override!r}: expected key=value or --key value.")
    return key, text


def _compose_files(verb: str, groups: dict[str, str]) -> DictConfig:
    plain = _composed(verb)
    files = {key: name for key, name in groups.items() if suites.is_file(name) and key in plain}
    chosen = {key: name for key, name in groups.items() if key not in files}
    config = _composed(verb, *(_group_override(verb, plain, key, name) for key, name in chosen.items()))
    OmegaConf.set_struct(config, False)
    config.update({key: None for key in plain if key not in config})
    config.update({key: suites.read(name) for key, name in files.items()})
    OmegaConf.set_struct(config, True)
    return config


def _composed(name: str, *overrides: str) -> DictConfig:
    return deepcopy(_composed_once(name, *overrides))


@cache
def _composed_once(name: str, *overrides: str) -> DictConfig:
    """A tenth of a second and more."""
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return hydra.compose(name, list(overrides))


@cache
def _fragments(verb: str) -> tuple[str, ...]:
    """The files that the verb is composed of beside its own, from the weakest."""
    names = re.findall(r"\w+", (CONFIG_DIR / f"{verb}.yaml").read_text().partition("\n")[0])
    return tuple(name for name in names if name in FRAGMENTS)


def _known_elsewhere(fragment: str, key: Any) -> bool:
    """Whether another verb that is composed of the file has the key."""
    return any(fragment in _fragments(verb) and key in _composed_once(verb) for verb in verbs())


@cache
def _own_keys(verb: str) -> frozenset[str]:
    """The keys that the verb's own file holds, among them those in which it differs from what it is composed of."""
    return frozenset(map(str, OmegaConf.load(CONFIG_DIR / f"{verb}.yaml")))


def _group_override(verb: str, plain: DictConfig, key: str, name: str) -> str:
    """The choice of a group in Hydra's words. Raises `UserError` for a group the verb lacks or a name unknown to it."""
    if key not in plain:
        raise UserError(f"unknown key {key!r} for {verb}. {nearest(key, map(str, plain))}")
    if name == "null" and key in NULLABLE:
        return f"~{GROUPS[key]}"
    known = [path.stem for path in (CONFIG_DIR / "env").glob("*.yaml")]
    if name not in known:
        own = "A suite of your own: FILE.yaml, or config_dir=DIR with DIR/env/NAME.yaml."
        raise UserError(f"unknown {key} {name!r}. {nearest(name, known)} {own}")
    return f"{GROUPS[key]}={name}"


def _section(verb: str, settings: DictConfig, experiment: Experiment) -> DictConfig:
    """The verb's own keys under `settings`, then under what the experiment says of the verb; what all verbs share stays
    with the verb that runs it, unless the verb's own file has another default for it, as `collect` has its own policy.
    """
    section = _compose_files(verb, {"env": settings.env} if "env" in settings else {})
    shared = {"verb", *common_keys(verb)} - (_own_keys(verb) - {"verb"})
    left_out = shared | (set() if "env" in settings else {"env"})
    own = OmegaConf.create(
        {key: value for key, value in section.items() if key not in left_out}, flags={"struct": True}
    )
    own.merge_with({key: value for key, value in settings.items() if key not in (*shared, "env")})
    experiment.change(own, verb, known_alone=True)
    return own


def _assign(config: DictConfig, verb: str, key: str, text: str) -> None:
    known = list(_paths(config))
    if key in GONE.get(verb, {}):
        raise UserError(f"unknown key {key!r} for {verb}, which earlier versions had. Say {GONE[verb][key]}.")
    if key not in known or key == "verb":
        raise UserError(f"unknown key {key!r} for {verb}. {nearest(key, (path for path in known if path != 'verb'))}")
    before = OmegaConf.select(config, key)
    rule = _rule(key) or _rule_of(before)
    value = _parse(text, rule)
    if key.endswith(".tasks") and isinstance(before, DictConfig) and isinstance(value, list):
        OmegaConf.update(config, key, _some_of(key, before, value), merge=False)
        return
    nullable = key in NULLABLE or f"{verb}.{key}" in NULLABLE
    if not (value is None and nullable) and not (_is_a(value, rule.type) and rule.holds(value)):
        raise UserError(f"bad value {key}={text}: expected {rule.expected}{' | null' if nullable else ''}.")
    OmegaConf.update(config, key, value, merge=rule is not _MAPPING)  # a mapping with a rule is replaced as a whole


def _some_of(key: str, tasks: DictConfig, names: Iterable[Any]) -> dict[str, Any]:
    """Of a suite's tasks those that are named. Raises `UserError` for one that it does not have."""
    for name in names:
        if name not in tasks:
            raise UserError(f"{key}: unknown task {name!r}. {nearest(str(name), map(str, tasks))}")
    return {str(name): tasks[name] for name in names}


def _paths(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in config:
        yield f"{prefix}{key}"
        if isinstance(config[key], DictConfig):
            yield from _paths(config[key], f"{prefix}{key}.")


def _rule(key: str) -> Rule | None:
    section, _, name = key.rpartition(".")
    return RULES.get(name) if section in ("", *verbs()) else None


def _rule_of(value: Any) -> Rule:
    """Without a rule of its own a key takes what its default is."""
    if value is None:
        return Rule(object, lambda _: True, "a value")
    if OmegaConf.is_config(value):
        kind = type(OmegaConf.to_container(value))
        return Rule(kind, lambda _: True, "a list, as in [1,2]" if kind is list else "a mapping, as in {a: 1}")
    return Rule(type(value), lambda _: True, f"a value like {value}")


def _parse(text: str, rule: Rule) -> Any:
    """Texts are taken as they stand, quoted or not, so that any path will do; all else follows Hydra's grammar."""
    if text == "null":
        return None
    if rule.type is str:
        text = text.replace("${", "\\${")
        return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"" else text
    try:
        override = OverridesParser.create().parse_override(f"key={text}")
    except HydraException:
        return text
    return text if override.is_sweep_override() else override.value()


def _is_a(value: Any, kind: type) -> bool:
    """Like isinstance, but a truth value is no number, and a whole number is a number."""
    if isinstance(value, bool):
        return kind in (bool, object)
    return isinstance(value, (int, float) if kind is float else kind)
