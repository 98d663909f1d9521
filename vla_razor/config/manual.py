"""What the command line, a shell's completion and docs/configuration.md say of the keys."""

import json
import re
from functools import cache
from typing import Any

from vla_razor import suites
from vla_razor.config import kinds
from vla_razor.config.groups import CHOICES, GROUPS, VERBS, command, kind_of, name_of, parts
from vla_razor.config.keys import Key, Verb
from vla_razor.config.simulation import CONFIG_DIR, built_in

INTRODUCTION = """# Configuration

Every key of every verb. `python scripts/make_configuration_page.py` writes this page from the definitions in
`vla_razor/config/`, which the checks, `--help` and a shell's completion come from too.

On the command line `--learning-rate 1e-4`, `--learning-rate=1e-4` and `learning_rate=1e-4` are the same; of two for one
key the later wins. `--show` prints what a verb's settings come to. A value is in
[Hydra's grammar](https://hydra.cc/docs/1.3/advanced/override_grammar/basic/); a text needs no quotes. Of a verb that is
made of others, such as `demo`, the keys of those stand under their name: `sft.epochs=3`. A verb says a key again where
it has another default than what it is made of. `env` and `prior` take the name of a suite in `configs/env/`, the file
of your own (`FILE.yaml`), or its name in `DIR/env/` with `config_dir=DIR`; their parts are keys too, as `env.tasks`.
`experiment=NAME` takes the defaults of `configs/experiment/NAME.yaml`; the command line is stronger."""


def keys(verb: str) -> list[str]:
    """The keys of a verb, as they are given on the command line; empty for none that has a configuration."""
    own = list(VERBS[verb].definitions()) if verb in VERBS else []
    return own and [*own, "experiment", *(["config_dir"] if "env" in own else [])]


def choices(verb: str, key: str) -> list[str]:
    """The values that a key is known to take, where they can be counted: names of files, or of its kind."""
    if key == "experiment":
        return [name for name, said in _experiments().items() if not said.isdisjoint(parts(verb))]
    if key in CHOICES:
        return sorted({*built_in(), *suites.registered()})
    kind = kind_of(verb, key)
    return kinds.choices(kind) if kind else []


def is_switch(key: str) -> bool:
    """Whether `key` is true or false, so that the flag alone means true."""
    return any(kind_of(verb, key) is kinds.Switch for verb in VERBS)


def describe(verb: str) -> str:
    """The verb's keys with their defaults and meaning, a line each: its own, then those of what it is made of."""
    made_of: dict[str, list[str]] = {}
    for key in VERBS[verb].definitions().values():
        title = _title(key.home) if key.home is not VERBS[verb] else f"Keys of {command(verb)}"
        made_of.setdefault(title, []).append(_row(f"{key.name}={shown(key.default)}", _sentence(verb, key)))
    beside = [_row("experiment=null", f"[{' | '.join(choices(verb, 'experiment')) or 'none for this verb'}]")]
    if "env" in VERBS[verb].definitions():
        beside.append(_row("config_dir=null", "folder of suites of your own: env/NAME.yaml"))
    made_of["What changes the defaults"] = beside
    return "\n\n".join("\b\n" + "\n".join([f"{title}:", *rows]) for title, rows in made_of.items())


def _row(setting: str, meaning: str) -> str:
    return f"  {setting}".ljust(29) + f" {meaning}"


def shown(value: Any) -> str:
    """A value as it is written on the command line.

    >>> shown({"learning_rate": 1.5e-4, "betas": [0.9, 0.99], "law": None, "greedy": False})
    '{learning_rate: 1.5e-4, betas: [0.9,0.99], law: null, greedy: false}'
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, float) and 0 < value < 1e-2:
        return re.sub(r"\.?0*e-0?", "e-", f"{value:.6e}")
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def reference() -> str:
    """The text of docs/configuration.md: what several verbs share, then each verb without what it shares."""
    shared: list[type[Verb]] = []
    verbs: list[str] = []
    for title, group in GROUPS.items():
        verbs.append(f"## {title}")
        for verb in group:
            bases = [part for part in verb.__mro__[1:] if issubclass(part, Verb)]
            shared += [base for base in reversed(bases) if base not in shared]
            links = ", ".join(f"[{_title(base)}](#{_title(base).lower().replace(' ', '-')})" for base in bases)
            verbs += [
                f"### vla-razor {command(name_of(verb))}",
                _title(verb),
                *_table(verb),
                f"And those of: {links}.",
            ]
    tables = [text for part in shared for text in (f"### {_title(part)}", *_table(part))]
    return "\n\n".join([INTRODUCTION, "## Shared keys", *tables, *verbs]) + "\n"


def _title(verb: type[Verb]) -> str:
    return " ".join((verb.__doc__ or "").split())


def _table(part: type[Verb]) -> list[str]:
    """The keys whose defaults it says, if there are any."""
    rows = [
        (f"`{key.name}`", f"`{shown(key.default)}`", kinds.words(key.kind), key.unit, key.meaning)
        for key in part.definitions().values()
        if key.home is part
    ]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return ["\n".join(["| key | default | value | unit | meaning |", "|---|---|---|---|---|", *lines])] if rows else []


def _sentence(verb: str, key: Key) -> str:
    values = choices(verb, key.name) if key.kind is not kinds.Switch else []
    if key.name in CHOICES:
        values += ["FILE.yaml", "a name in config_dir/env"]
    return " ".join(filter(None, [f"[{' | '.join(values)}]" if values else "", key.unit, key.meaning]))


@cache
def _experiments() -> dict[str, set[str]]:
    """By experiment, the verbs and what several verbs are made of for which its file has settings."""
    files = sorted((CONFIG_DIR / "experiment").glob("*.yaml"))
    return {path.stem: set(re.findall(r"^(\w+):", path.read_text(), re.MULTILINE)) for path in files}
