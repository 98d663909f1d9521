"""Which device a name means on this machine."""

import torch

from vla_razor.errors import UserError


def device_named(device: str | torch.device) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one. Raises `UserError` for one that is not here."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device={device}: unknown; expected auto, cpu or cuda.") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device}: there is no CUDA device here; use device=cpu.")
    return chosen
