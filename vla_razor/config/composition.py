"""From a verb and its overrides to one checked configuration.

Hydra composes a verb's keys, which are defined in Python, with the files of the groups `env` and `prior`; an experiment
(`configs/experiment/<name>.yaml`) changes them; `robot` then fills in what a scene looks like with that robot
(`configs/robot/<name>.yaml`, by Gymnasium id). What is given on the command line and by an experiment is checked here.
Hydra's own overrides would need quotes around a path and the like.

From the weakest to the strongest: a verb's own defaults; what a verb that is made of others, such as `sweep`, has
instead of them in its sections; the experiment; the command line.
"""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from vla_razor import recordings, suites
from vla_razor.config import axes, kinds, simulation
from vla_razor.config.groups import CHOICES, GONE, SEQUENCES, SWEEPS, VERBS, kind_of, own_keys, parts
from vla_razor.config.simulation import CONFIG_DIR
from vla_razor.errors import UserError, nearest


def compose(verb: str, overrides: Iterable[str] = ()) -> DictConfig:
    """The configuration of `verb` under `overrides` ("key=value", a later one wins), with `out` filled in.

    An experiment holds settings by verb, or by what several verbs are made of, such as `training`; each verb takes
    those, then its own. In `demo`, a key named like a verb holds that verb's settings.

    Raises `UserError` for an unknown key, environment or experiment, for an experiment that has nothing for the verb,
    and for a value of the wrong type or out of range.
    """
    values: dict[str, str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"cannot read {override!r}: expected key=value or --key value.")
        values[key] = text
    folder = values.pop("config_dir", None)
    for group in [group for group in CHOICES if group in values and folder is not None]:
        # A suite's file in the user's own folder goes before what is described here under the same name.
        if not Path(str(folder)).is_dir():
            raise UserError(f"config_dir={folder}: no such folder; expected one with env/NAME.yaml.")
        names = values[group].split(",") if verb in SEQUENCES else [values[group]]
        paths = [(name, Path(str(folder)) / "env" / f"{name}.yaml") for name in names]
        values[group] = ",".join(str(path) if path.is_file() else name for name, path in paths)
    _take_recorded(verb, values)
    several = verb in SWEEPS or verb in SEQUENCES
    given = axes.taken_out(values, whole=SEQUENCES.get(verb)) if several else {}
    experiment = Experiment.named(values.pop("experiment", None))
    config = _compose_files(verb, {group: values.pop(group) for group in CHOICES if group in values})
    sections = [str(key) for key in config if key in VERBS]
    experiment.check(verb, sections)
    for section in sections:
        # The verb's own keys, under what the verb that is made of it has instead, under what the experiment says.
        composed = _composed(section)
        keys = [key.name for key in own_keys(section) if key.name != "env"]
        own = OmegaConf.create({key: composed[key] for key in keys}, flags={"struct": True})
        own.merge_with(config[section])
        experiment.change(own, section, known_alone=True)
        config[section] = own
    experiment.change(config, verb)
    if several:
        given |= {key: [values.pop(key)] for key in list(values) if key in config.axes or axes.is_one(config, key)}
    # Before the other keys: what the robot brings with it is a default, which `env.make...` may then change.
    for key in [key for key in ("robot", "image_size", "sim_backend") if key in values]:
        _assign(config, verb, key, values.pop(key))
    simulation.place_robot(config)
    for key, text in values.items():
        _assign(config, verb, key, text)
    simulation.check(config)
    simulation.set_prior_apart(config)  # last: only now is it known which tasks are learned
    if given:
        config.axes = {**axes.kept(config, given), **given}
    if config.out is None:
        subject = f"{verb}-{config.env.name}" if "env" in config else verb
        config.out = f"runs/{subject}-{datetime.now():%Y%m%d-%H%M%S}"
    return config


def to_yaml(config: DictConfig) -> str:
    """The configuration as a file that `OmegaConf.load` reads back."""
    return OmegaConf.to_yaml(config)


def leaves(config: Any, path: str = "") -> dict[str, Any]:
    """The settings by their full names, such as env.make.robot."""
    if not isinstance(config, DictConfig):
        return {path: OmegaConf.to_container(config) if OmegaConf.is_config(config) else config}
    found: dict[str, Any] = {}
    for key in config:
        found |= leaves(config[key], f"{path}.{key}" if path else str(key))
    return found


class Experiment:
    """What an experiment's file says: settings by verb, or by what several verbs are made of."""

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
        spoken_of = {part for one in (verb, *sections) for part in parts(one)}
        if self.name and spoken_of.isdisjoint(self.settings):
            named = ", ".join(map(str, self.settings))
            raise UserError(f"experiment={self.name} says nothing of {verb}: it has settings for {named}.")

    def change(self, config: DictConfig, verb: str, *, known_alone: bool = False) -> None:
        """Sets in `config` what it says of the verb: of a section (`known_alone`) the keys that stand there, else all.
        What it says of something that several verbs are made of goes to those that know the key.

        Raises `UserError` for a key that the verb, or every verb that is made of it, does not have, and for a value
        that the key may not hold.
        """
        for part in parts(verb):
            said = self.settings.get(part, {})
            others = {key for one in VERBS if part in parts(one) for key in VERBS[one].definitions()}
            left_out = {key for key in said if key not in config and (known_alone or key in others)}
            said = {key: value for key, value in said.items() if key not in left_out}
            _set(config, verb, said, part, f"experiment={self.name}: ")


def _take_recorded(verb: str, values: dict[str, str]) -> None:
    """Where nothing else is said, the tasks are those of the dataset that is learned or measured on, and none is a
    prior one: nobody can act in it. Raises `UserError` where somebody would have to.
    """
    keys = VERBS[verb].definitions()
    given = [values[key] for key in ("states", "demos") if key in values and key in keys]
    if "env" in keys and "env" not in values and (recorded := next(filter(recordings.describes, given), None)):
        values["env"] = recorded
    for key in CHOICES:
        if recordings.describes(values.get(key, "")) and (key == "prior" or not {"states", "demos"} & set(keys)):
            raise UserError(
                f"{key}={values[key]}: it is recorded, and nobody can act in it. env of sft and kl takes it."
            )
    if "prior" in keys and recordings.describes(values.get("env", "")):
        values.setdefault("prior", "null")


def _compose_files(verb: str, groups: dict[str, str]) -> DictConfig:
    names = groups.get("env", "").split(",") if verb in SEQUENCES else []
    if len(names) > 1:
        return _side_by_side([_compose_files(verb, {**groups, "env": name}) for name in names])
    plain = _composed(verb)
    outside = {key: name for key, name in groups.items() if key in plain and _is_outside(name)}
    chosen = {key: name for key, name in groups.items() if key not in outside}
    config = _composed(verb, *(_group_override(verb, key, name) for key, name in chosen.items()))
    OmegaConf.set_struct(config, False)
    config.update({key: None for key in plain if key not in config})
    for key, name in outside.items():
        config[key] = recordings.read(name) if recordings.describes(name) else suites.read(name)
        most = config[key].pop("num_envs")
        if most is not None and "num_envs" in config:  # a default: experiments and the command line come after it
            config.num_envs = min(config.num_envs, most)
    OmegaConf.set_struct(config, True)
    return config


def _side_by_side(configs: list[DictConfig]) -> DictConfig:
    """The first configuration with the scenes of all, by name and in their order. Raises `UserError` where a name comes
    twice.
    """
    config = configs[0]
    found = [scene for one in configs for scene in simulation.scenes(one.env)]
    names = [scene.name for scene in found]
    if len(set(names)) < len(names):
        raise UserError(f"env={','.join(names)}: expected each suite once.")
    config.env = {"name": "-".join(names), **dict(zip(names, found, strict=True))}
    config.num_envs = min(one.num_envs for one in configs)
    return config


def _is_outside(name: str) -> bool:
    """Whether the choice of an environment is a suite from outside. What is described here keeps its name, whatever a
    package registers.
    """
    if suites.is_file(name) or recordings.describes(name):
        return True
    return name not in simulation.built_in() and name in suites.registered()  # asking packages takes long: at last


def _composed(name: str, *overrides: str) -> DictConfig:
    return deepcopy(_composed_once(name, *overrides))  # the caller changes it, the cache must not


@cache
def _composed_once(name: str, *overrides: str) -> DictConfig:
    """A tenth of a second and more."""
    import hydra
    from hydra.core.config_store import ConfigStore

    if name in VERBS:
        defaults = {key.name: key.default for key in VERBS[name].definitions().values()}
        choices = [{CHOICES[group]: defaults.pop(group)} for group in CHOICES if group in defaults]
        node = {"defaults": ["_self_", *choices], "verb": name, **defaults}
        ConfigStore.instance().store(name, node)
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return hydra.compose(name, list(overrides))


def _group_override(verb: str, key: str, name: str) -> str:
    """The choice of a group in Hydra's words. Raises `UserError` for a group the verb lacks or a name unknown to it."""
    known_keys = VERBS[verb].definitions()
    if key not in known_keys:
        raise UserError(f"unknown key {key!r} for {verb}. {nearest(key, known_keys)}")
    if name == "null" and kinds.holds(known_keys[key].kind, None):
        return f"~{CHOICES[key]}"
    if name not in simulation.built_in():
        known = [*simulation.built_in(), *suites.registered()]
        own = "A suite of your own: FILE.yaml, or config_dir=DIR with DIR/env/NAME.yaml."
        raise UserError(f"unknown {key} {name!r}. {nearest(name, known)} {own}")
    return f"{CHOICES[key]}={name}"


def _assign(config: DictConfig, verb: str, key: str, text: str) -> None:
    known = list(_paths(config))
    if key in GONE.get(verb, {}):
        raise UserError(f"unknown key {key!r} for {verb}, which earlier versions had. Say {GONE[verb][key]}.")
    if key not in known or key == "verb":
        raise UserError(f"unknown key {key!r} for {verb}. {nearest(key, (path for path in known if path != 'verb'))}")
    before = OmegaConf.select(config, key)
    defined = kind_of(verb, key)
    kind = defined or kinds.like(_plain(before))
    value: Any = _parse(text, kind)
    named = key.endswith(".tasks") and isinstance(before, DictConfig) and isinstance(value, list)
    if named:  # of a suite's tasks, which are a mapping, some are chosen by their names
        for name in [name for name in value if name not in before]:
            raise UserError(f"{key}: unknown task {name!r}. {nearest(str(name), map(str, before))}")
        value = {str(name): before[name] for name in value}
    elif not kinds.holds(kind, value):
        raise UserError(f"bad value {key}={text}: expected {kinds.words(kind)}.")
    if key in VERBS:
        _set(before, key, dict(value), key)
    else:  # a mapping that is a key is replaced as a whole, one inside of a scene takes what is said of it
        OmegaConf.update(config, key, value, merge=defined is None and not named)


def _set(config: DictConfig, verb: str, said: Mapping[Any, Any], where: str, source: str = "") -> None:
    """Sets what `source` says of a verb's settings, those of its sections included."""
    for key, value in said.items():
        if key not in config:
            raise UserError(f"{source}{where} has no key {key!r}. {nearest(str(key), map(str, config))}")
        kind = VERBS[verb].definitions()[key].kind
        if not kinds.holds(kind, _plain(value)):
            raise UserError(f"{source}{where}: bad value {key}={value}: expected {kinds.words(kind)}.")
        if key in VERBS:
            _set(config[key], key, value, f"{where}.{key}", source)
        else:
            config[key] = value


def _paths(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in config:
        yield f"{prefix}{key}"
        if isinstance(config[key], DictConfig):
            yield from _paths(config[key], f"{prefix}{key}.")


def _parse(text: str, kind: Any) -> Any:
    """Texts are taken as they stand, quoted or not, so that any path will do. Mappings are YAML, in which a key may
    hold a colon, as `module:Class` does; all else is in Hydra's grammar.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if text == "null":
        return None
    if kinds.plain_type(kind) in (str, Literal):
        text = text.replace("${", "\\${")
        return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"" else text
    try:
        if kinds.plain_type(kind) is dict and text.startswith("{"):
            return OmegaConf.to_container(OmegaConf.create(text))
        override = OverridesParser.create().parse_override(f"key={text}")
    except (HydraException, OmegaConfBaseException, YAMLError):
        return text
    return text if override.is_sweep_override() else override.value()


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
