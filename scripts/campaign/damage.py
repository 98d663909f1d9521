"""Files that are cut short or have a bit flipped are to be refused, and what the message advises must help."""

import re
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from campaign.given import RUN
from campaign.mishaps import Draw
from campaign.processes import HERE
from campaign.stage import Stage, Told

TRIES = 20
"""After how many kills there must have been a file to damage."""


class File(NamedTuple):
    """What is damaged, a random one where several match: in the run itself, which was killed and is to be resumed; in
    its cache; or in a folder of the stage that it reads, `of`.
    """

    pattern: str
    of: str | None = None
    cached: bool = False


CHECKPOINT, ROWS = "checkpoints/*/*", "demonstrations/*.h5"
SFT, COLLECT = f"undisturbed/sft/{RUN}", f"undisturbed/collect/{RUN}"
DAMAGES: dict[str, dict[str, File]] = {
    "checkpoint damaged": {
        "sft": File(CHECKPOINT),
        "rl": File(CHECKPOINT),
        "kl": File(CHECKPOINT, of=SFT),
        "interpolate": File(CHECKPOINT, of=SFT),
        "llm sft": File(CHECKPOINT),
        "mnist": File("bases/*/*"),
        "llm kl": File(CHECKPOINT, of=f"undisturbed/llm sft/{RUN}"),
    },
    "optimizer state damaged": {
        "sft": File("trainer_state/*.pt"),
        "rl": File("trainer_state/*.pt"),
        "llm sft": File("trainer_state/**/*.pt"),
        "llm grpo": File("trainer_state/**/*.pt"),
    },
    "demonstrations damaged": {
        "stats": File(ROWS, of=COLLECT),
        "collect": File(ROWS),
        "sft": File(ROWS, of=COLLECT),
        "export": File(ROWS, of=COLLECT),
    },
    "probe set damaged": {
        "sft": File("probe_sets/*/*.*", cached=True),
        "rl": File("probe_sets/*/*.*", cached=True),
        "kl": File("probe_sets/*/*.*", cached=True),
        "llm sft": File("llm_probe_sets/*/*.*", cached=True),
        "llm kl": File("llm_probe_sets/*/*.*", cached=True),
    },
    "table damaged": {"mnist": File("*/*.parquet"), "report": File("results.parquet", of=f"undisturbed/sweep/{RUN}")},
    "law damaged": {"kl": File("law.json", of="given/law")},
}
"""By what is damaged and the verb that reads it."""


def damaged(stage: Stage, verb: str, folder: Path, draw: Draw, typed: bool, *, files: Mapping[str, File]) -> Told:
    """The run must not begin with the file, or end as if nothing were wrong with it; then it must go on as advised."""
    told, file, places = Told(), files[verb], dict[str, str]()
    words = stage.words(verb, folder)
    if file.of:
        original, root = stage.folder / file.of, folder / HERE / "copy"
        stage.undisturbed(verb)
        shutil.copytree(original, root)
        places = {str(root): str(original)}
        words = [word.replace(str(original), str(root)) for word in words]
    elif file.cached:
        stage.undisturbed(verb)
        root = folder / HERE / "cache"
        shutil.copytree(stage.apart / verb / "cache", root, dirs_exist_ok=True, ignore=shutil.ignore_patterns("vulkan"))
    else:
        root = _killed_with(stage, verb, folder, draw, file.pattern)
        words = ["resume", RUN]
    path = Path(draw.choice(_newest(root, file.pattern)))
    before = path.read_bytes()
    harmed(path, draw)
    process = stage.start(verb, folder, words, typed=typed)
    stage.ended(process, told, [0, 1, 2])
    if process.status:
        if path.name not in process.said and path.parent.name not in process.said:
            told.wrong.append(f"not a word of {path}: {process.said}")
        if advised := re.search(r"[Dd]elete (\S+?)[,;:]? ", process.said):
            _remove(folder / HERE / advised[1])
        else:  # it is to be copied from elsewhere again
            path.write_bytes(before)
        begun = (folder / HERE / RUN / "config.yaml").is_file()
        process = stage.start(verb, folder, ["resume", RUN] if begun else words)
        told.resumed |= begun
        stage.ended(process, told, [0])
    return stage.to_the_end(verb, folder, told, places=places)


def _killed_with(stage: Stage, verb: str, folder: Path, draw: Draw, pattern: str) -> Path:
    """A run that was killed when there was such a file."""
    known, run = stage.undisturbed(verb), folder / HERE / RUN
    for _ in range(TRIES):
        shutil.rmtree(run, ignore_errors=True)
        at = str(draw.integers(known.operations // 3, known.operations, endpoint=True))
        (process,) = stage.go_on(verb, folder, told := Told(), FAULT_KILL=at)
        stage.ended(process, told, [-signal.SIGKILL, 0])
        if _newest(run, pattern) and not (run / "summary.json").is_file():
            return run
    raise AssertionError(f"{TRIES} kills of {verb} left no {pattern}")


def _newest(root: Path, pattern: str) -> list[str]:
    """The files of a pattern, of numbered folders those of the last one, which is what is read."""
    found = {path: re.search(r"\d+$", path.parent.name) for path in root.glob(pattern) if path.is_file()}
    last = max((int(number[0]) for number in found.values() if number), default=0)
    return sorted(str(path) for path, number in found.items() if not number or int(number[0]) == last)


def harmed(path: Path, draw: Draw) -> None:
    """Cut short, or with one bit the other way round."""
    content = bytearray(path.read_bytes())
    if draw.random() < 0.5:
        del content[int(draw.integers(len(content))) :]
    else:
        content[int(draw.integers(len(content)))] ^= 1 << int(draw.integers(8))
    path.unlink()  # where it is a link to the same content elsewhere, that stays
    path.write_bytes(content)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
