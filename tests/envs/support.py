"""What tests of environments ask an expert."""

from typing import Any

from vla_razor.policies import Observations


def shown(info: dict[str, Any]) -> Observations:
    """What the scripted expert is asked about one environment."""
    return Observations({}, [info["instruction"]], infos=[info])
