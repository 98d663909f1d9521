"""Every key of every verb, defined once, and the configurations that are composed of them.

`robot.py`, `study.py` and `language.py` say each key's type, range, default, unit and meaning; `groups.py` lists the
verbs. What is checked, the help, a shell's completion and docs/configuration.md come from there.
"""

# ruff: noqa: F401  (what the rest of the package uses of it)
from vla_razor.config.composition import Experiment, compose, leaves, to_yaml
from vla_razor.config.groups import GROUPS, VERBS, command, common_keys, earlier, name_of
from vla_razor.config.manual import choices, describe, is_switch, keys
from vla_razor.config.simulation import CONFIG_DIR, cameras_in, environments, robot_in, robot_of, scenes, suite_in
