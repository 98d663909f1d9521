"""What OpenVLA-OFT's discrete variant needs to know beyond OpenVLA's `config.json`.

The reference (openvla-oft 213c5ff) keeps these as constants that it picks by looking for the names of robots in the
command line, so that its checkpoints do not say them; those that are saved here do.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from vla_razor.errors import UserError
from vla_razor.policies.openvla.action_tokenizer import ActionScale
from vla_razor.policies.openvla.config import OpenVLAConfig

BOUNDS = {"bounds_q99": ("q01", "q99"), "bounds": ("min", "max")}
"""By the reference's names for them, the statistics that span [-1, 1]."""
_ADDED = 1e-8  # to the span, which plain OpenVLA does not


@dataclass
class OpenVLAOFTConfig(OpenVLAConfig):
    """A checkpoint's configuration.

    Attributes:
        chunk: control steps that one pass decides (8 for LIBERO, 5 for Bridge, 25 for ALOHA).
        dims: numbers of an action (7; 14 for ALOHA's two arms).
        stop_token: whether the sequence ends with the stop token, as in the reference's training; with bidirectional
            attention it changes every logit (RLinf leaves it out).
        normalization: a key of `BOUNDS`: bounds_q99 for LIBERO and Bridge, bounds for ALOHA.
    """

    OWN: ClassVar[tuple[str, ...]] = ("chunk", "dims", "stop_token", "normalization")
    SETTINGS: ClassVar[tuple[str, ...]] = (*OpenVLAConfig.SETTINGS, *OWN)

    chunk: int = 8
    dims: int = 7
    stop_token: bool = True
    normalization: str = "bounds_q99"

    @classmethod
    def _refuse_other_families(cls, raw: dict[str, Any], where: str) -> None:
        if "temperature" in raw and "chunk" not in raw:  # which a checkpoint that was saved here would say
            raise UserError(
                f"{where}: this is a checkpoint of OpenVLA, which decides one token after another, not of OpenVLA-OFT. "
                "Open it with OpenVLA.from_pretrained."
            )

    @classmethod
    def _fields(cls, raw: dict[str, Any], where: str) -> dict[str, Any]:
        own = {name: raw[name] for name in cls.OWN if name in raw}
        return {**super()._fields(raw, where), **own}

    def check(self, where: str) -> None:
        """Raises `UserError` naming `where` for settings that a policy cannot have."""
        super().check(where)
        if not (_positive(self.chunk) and _positive(self.dims)):
            raise UserError(f"{where}: chunk={self.chunk}, dims={self.dims}; expected whole numbers from 1.")
        if self.normalization not in BOUNDS:
            expected = " or ".join(BOUNDS)
            raise UserError(f"{where}: unknown normalization {self.normalization!r}; expected {expected}.")

    def to_dict(self) -> dict[str, Any]:
        """As `OpenVLAConfig.to_dict`."""
        own = {name: getattr(self, name) for name in self.OWN}
        return {**super().to_dict(), **own}

    def action_scale(self, key: str | None) -> ActionScale:
        """As `OpenVLAConfig.action_scale`, between the bounds of `normalization`."""
        return ActionScale.of(self.norm_stats, key, BOUNDS[self.normalization], _ADDED)


def _positive(number: Any) -> bool:
    return isinstance(number, int) and number > 0
