"""The ranks of a run: the processes that share its work, begun by torchrun, accelerate or Ray Train (docs/scale.md).

Each holds the policy and simulators of its own, and does its `share`. What the others must know of that they are told
by `gathered`, in the order of one process, so that each can go on as if it had done everything. Rank 0 writes the run;
the others are silent.

One process is a run of one rank: nothing is sent then, and torch.distributed is not begun.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vla_razor.errors import RunFailed, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

PATIENCE = timedelta(hours=1)
"""For which a rank waits for the others, whose share of the episodes may take longer than its own. One that has died is
noticed at once, because its connections are closed.
"""
GRACE = 5.0
"""Seconds in which the ranks of a run that ends early tell each other why; who is silent for so long is dead."""


class Lost(RunFailed):
    """Another rank has ended or cannot be reached."""


@dataclass
class _Group:
    rank: int
    world: int
    store: Any  # where the ranks leave word; torchrun keeps it, else rank 0
    hosts: Sequence[str] = ()
    folder: Path | None = None
    lost: bool = False  # whether another could not be reached
    left: bool = False


_group: _Group | None = None


def rank() -> int:
    """Of this process, from 0."""
    return _group.rank if _group else 0


def world() -> int:
    """How many ranks there are."""
    return _group.world if _group else 1


def first() -> bool:
    """Whether this is the rank that writes the run."""
    return rank() == 0


def lost() -> bool:
    """Whether another rank could not be reached."""
    return _group is not None and _group.lost


def share(items: Sequence[T]) -> list[T]:
    """What of a list this rank is to do: every world-th, so that neighbours, which are alike, go to different ranks."""
    return list(items[rank() :: world()])


def gathered(part: Sequence[T], sent: Callable[[T], T] = lambda item: item) -> list[T]:
    """The whole of which every rank gives its `share`, in order. This rank's own items stay the objects that they are;
    the others get what `sent` makes of them.
    """
    parts: list[Sequence[T]] = everyones([sent(item) for item in part]) if world() > 1 else [part]
    whole: list[Any] = [None] * sum(map(len, parts))
    for number, items in enumerate(parts):
        whole[number :: world()] = part if number == rank() else items
    return whole


def span(count: int) -> slice:
    """The rows of `count` that are this rank's: as many as any other's, or one more or less."""
    return slice(count * rank() // world(), count * (rank() + 1) // world())


def concatenated(rows: Tensor) -> Tensor:
    """All rows, of which every rank gives its `span`; on the device of its own."""
    if world() == 1:
        return rows
    import torch

    return torch.cat(everyones(rows.cpu())).to(rows.device)


def everyones(value: T) -> list[T]:
    """What each rank gives, by rank."""
    if world() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world()
    with _together():
        dist.all_gather_object(values, value)
    return values


def from_first(make: Callable[[], T]) -> T:
    """What rank 0 makes, for all."""
    if world() == 1:
        return make()
    import torch.distributed as dist

    values = [make() if first() else None]
    with _together():
        dist.broadcast_object_list(values, src=0)
    return values[0]  # pyright: ignore[reportReturnType]


def total(*numbers: float) -> tuple[float, ...]:
    """Each number added up over the ranks."""
    return tuple(map(sum, zip(*everyones(numbers), strict=True)))


def meet() -> None:
    """Nobody goes on before everybody is here."""
    everyones(None)


def add_up(tensors: Sequence[Tensor], number: float) -> float:
    """Adds up each tensor over the ranks, in place, and a number, which is returned, in one message."""
    if world() == 1:
        return number
    import torch
    import torch.distributed as dist

    flat = torch.cat([*(tensor.flatten() for tensor in tensors), tensors[0].new_tensor([number])])
    with _together():
        dist.all_reduce(flat)
    ends = list(accumulate(tensor.numel() for tensor in tensors))
    for tensor, end in zip(tensors, ends, strict=True):
        tensor.copy_(flat[end - tensor.numel() : end].view_as(tensor))
    return float(flat[-1])


def agree(values: Mapping[str, Any]) -> None:
    """Raises UserError, on every rank alike, for the first of these that is not the same on all."""
    for name, told in zip(values, zip(*everyones(list(values.values())), strict=True), strict=True):
        for number, value in enumerate(told):
            if value != told[0]:
                raise UserError(
                    f"{name} is {told[0]} on {_named(0)}, but {value} on {_named(number)}: all ranks of a run need the "
                    "same command and the same files."
                )


def agree_on_folder(path: Path) -> None:
    """Raises UserError, on every rank alike, where rank 0's run folder cannot be seen by all."""
    if _group is None:  # one process, or accelerate's, who have not met yet
        return
    _group.folder = path
    meet()  # rank 0 has made it by then
    for number, seen in enumerate(everyones((path / "config.yaml").is_file())):
        if not seen:
            raise UserError(
                f"{_named(number)} does not see the run folder {path.absolute()} of {_named(0)}: out= must be in a "
                "file system that all nodes share, under the same name on each, as must policy and demonstrations."
            )


def card(device: torch.device) -> torch.device:
    """The GPU of this rank. Raises UserError where there is none for it."""
    import torch
    import torch.distributed as dist

    number, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if device.index not in (None, number):
        raise UserError(f"device={device} is one GPU for {world()} ranks: say device=cuda, and each has its own.")
    if number >= there:
        raise UserError(f"{_named(rank())} is number {number + 1} on its machine, which has {there} GPUs: start fewer.")
    if not dist.is_nccl_available():
        raise UserError("this build of torch has no NCCL, by which GPUs exchange gradients: device=cpu, or another.")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def expected() -> int:
    """How many processes the launcher has begun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined() -> Iterator[None]:
    """Inside, the processes that the launcher has begun are the ranks of one run; one alone is left as it is.

    Where one fails, or dies, all end, and one says why: raises what this rank is to say, and SystemExit where another
    has the word.
    """
    if expected() == 1:
        yield
        return
    _join()
    try:
        yield
        meet()  # rank 0 may keep what the others still need
    except BaseException as error:
        raise _last_words(error) from (None if isinstance(error, UserError | RunFailed | KeyboardInterrupt) else error)
    else:
        leave("done")
    finally:
        globals()["_group"] = None


def leave(word: str) -> None:
    """Leaves the group, telling the others why: what they wait for fails, and they end too. What takes time, such as a
    last save, comes afterwards.
    """
    if _group is None or _group.left:
        return
    import torch.distributed as dist

    _group.left = True
    try:
        _group.store.set(f"word {_group.rank}", word)
    except RuntimeError:  # rank 0 kept it, and is gone
        _group.store = None
    dist.destroy_process_group()


def _join() -> None:
    import torch
    import torch.distributed as dist

    global _group
    try:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        store, number, count = next(dist.rendezvous("env://", timeout=PATIENCE))  # pyright: ignore
        begun = dist.PrefixStore("group", store)  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=begun, rank=number, world_size=count, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise RunFailed(f"the ranks of this run do not find each other: {error}") from error
    _group = _Group(number, count, dist.PrefixStore("words", store))  # pyright: ignore[reportPrivateImportUsage]
    if number:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  (to the end of the process)
    _group.hosts = everyones(socket.gethostname())


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's and NCCL's for a connection that has been closed, or waited for in vain
        assert _group is not None
        _group.lost = True
        raise Lost(f"another rank of this run cannot be reached.{_advice()}") from error


def _last_words(error: BaseException) -> BaseException:
    """What this rank is to raise, when the others have been heard."""
    assert _group is not None
    own = "failed"
    if isinstance(error, KeyboardInterrupt | Lost):
        own = "lost" if _group.lost else "interrupted"
    leave(own)
    words = _heard()
    failed = [number for number, word in words.items() if word == "failed"]
    silent = sorted(set(range(_group.world)) - words.keys())
    if failed:
        said = error if rank() == min(failed) else SystemExit(1)
        if rank() and said is error and isinstance(error, UserError | RunFailed):
            said = type(error)(f"{_named(rank())}: {error}")
    elif silent and (own == "lost" or _group.store is not None):
        who = " and ".join(map(_named, silent))
        said = RunFailed(f"{who} ended without a word, killed or out of memory: all others stop.{_advice()}")
        said = said if rank() == min(words) else SystemExit(1)
    else:
        said = error if first() else SystemExit(130 if "interrupted" in words.values() else 1)
    _linger(len(words))
    return said


def _heard() -> dict[int, str]:
    """The last word of every rank that gives one within `GRACE`."""
    assert _group is not None
    if _group.store is None:
        return dict.fromkeys(range(1, _group.world), "lost")
    words, end = dict[int, str](), time.monotonic() + GRACE
    try:
        while len(words) < _group.world and time.monotonic() < end:
            for number in set(range(_group.world)) - words.keys():
                if _group.store.check([f"word {number}"]):
                    words[number] = _group.store.get(f"word {number}").decode()
            time.sleep(0.05)
    except RuntimeError:  # rank 0 kept them, and is gone
        _group.store = None
        return _heard()
    return words


def _linger(speaking: int) -> None:
    """Rank 0 may keep the words: it waits until the others have read them."""
    assert _group is not None
    if _group.store is None:
        return
    try:
        read, end = _group.store.add("read", 1), time.monotonic() + GRACE
        while first() and read < speaking and time.monotonic() < end:
            time.sleep(0.05)
            read = _group.store.add("read", 0)
    except RuntimeError:  # it is gone already
        pass


def _advice() -> str:
    return f" Go on with: vla-razor resume {_group.folder}" if _group and _group.folder else ""


def _named(number: int) -> str:
    return f"rank {number} ({_group.hosts[number]})" if _group and _group.hosts else f"rank {number}"
