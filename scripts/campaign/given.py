"""What the verbs of the campaign are given: policies, suites and data of a few kilobytes, and settings that end within
seconds.

A verb reads what an undisturbed run of another one has left, so that the order below is one in which they can be done.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vla_razor.study import forecast
from vla_razor.study.forecast import FittedLaw

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SUITE = """
id: slides:Slides/Spoilt-v0
tasks:
  slide_left: {instruction: pick can, options: {end: left}}
image: camera
proprioception: state.place
success: is_there
horizon: 8
control_hz: 5
"""
OTHER = SUITE.replace("slide_left", "slide_right").replace("end: left", "end: right")
EACH_WAY = {"q01": [-1.0] * 3, "q99": [1.0] * 3, "mask": [True] * 3}
LAW = FittedLaw("robot", "forward_kl_per_token", (0.0, 0.1, 0.0), 0.9, (0.0, 2.0), -0.1, 0.1, 12)
RUN = "run"
"""The run's folder below that of a try, which is the working directory: files name it alike in all of them."""


class Verb(NamedTuple):
    """A command line but for out=, and whether it has simulation workers, may be shared by ranks, and needs TRL."""

    words: Sequence[str]
    workers: bool = False
    ranked: bool = False
    language: bool = False


def make(folder: Path) -> None:
    """Writes what is given, if it is not there yet."""
    if (folder / "whole").exists():
        return
    sys.path.append(str(ROOT))  # the tests' own helpers, which are no package
    from tests.llm.support import small_data, small_model
    from tests.parity_mnist.support import few, write_images
    from tests.verbs.support import ACTION, small_policy

    folder.mkdir(parents=True, exist_ok=True)
    policy = small_policy()
    policy.config.norm_stats = {"slide": {"action": EACH_WAY}, "vla_razor_panda": {"action": ACTION}}
    policy.save_pretrained(folder / "small")
    (folder / "slide.yaml").write_text(SUITE)
    (folder / "other.yaml").write_text(OTHER)
    forecast.save(folder / "law" / forecast.FILE, LAW)
    small_model(folder / "model")
    small_data(folder / "rows")
    write_images(folder / "images", few((32, 48), (32, 12)))
    (folder / "whole").touch()


def environment(cache: Path) -> dict[str, str]:
    """What every process of the campaign has around it: the checkout's packages, one thread, no network."""
    places = [ROOT, HERE.parent, ROOT / "envs", ROOT / "tests" / "envs", HERE / "outside"]
    own = {"VLA_RAZOR_CACHE": str(cache), "COLUMNS": "200", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own, "PYTHONPATH": ":".join(map(str, places))}


def verbs(given: Path, undisturbed: Path) -> Mapping[str, Verb]:
    """By name, in the order in which each finds what it needs below `undisturbed`, where it is given `folder/run`."""
    at = {name: undisturbed / name / RUN for name in ("collect", "sft", "export", "llm annotate", "llm sft", "sweep")}
    few = ("device=cpu", "logger=none")
    played = (*few, f"env={given / 'slide.yaml'}", "num_envs=4", "num_workers=1")
    small = (*played, f"policy={given / 'small'}")
    learns = (*small, "warmup_steps=0", "eval_episodes=2", "probe_states=20", "save_every=1", "probe_every=2")
    learns = (*learns, "prior=null", "other_instructions=[open drawer]")
    model = (*few, f"model={given / 'model'}", f"data_dir={given / 'rows'}", "dtype=float32", "direct=true")
    taught = (*model, "max_new_tokens=4", "micro_batch_size=4", "warmup_steps=0", "probe_prompts=2", "eval_prompts=2")
    taught = (*taught, "probe_every=1", "save_every=1", "gradient_checkpointing=false", "max_steps=4")
    probed = ("probe_states=20", "probe_every=2", "other_instructions=[open drawer]")
    acting = (*played, "policy=slides:Leftward", "grid=4x1", "per_point=2", "max_attempts=9")
    collected = {"workers": True, "ranked": True}
    return {
        "collect": Verb(("collect", *acting), **collected),
        "sft": Verb(("sft", *learns, f"demos={at['collect']}", "epochs=2", "batch_size=16"), **collected),
        "rl": Verb(("rl", *learns, "iterations=4", "grid=1x2", "per_point=4", "staleness=1"), **collected),
        "eval": Verb(("eval", *small, "episodes=8", "videos=1"), **collected),
        "kl": Verb(
            (
                "kl",
                *played,
                f"base={given / 'small'}",
                f"policy={at['sft']}",
                "probe_states=20",
                f"law={given / 'law'}",
            ),
            **collected,
        ),
        "interpolate": Verb(("interpolate", *few, f"policy={at['sft']}", "shares=[0.25,0.5,0.75]")),
        "stats": Verb(("stats", str(at["collect"]), *few, f"policy={given / 'small'}")),
        "export": Verb(("export", "lerobot", str(at["collect"]), "logger=none")),
        "import": Verb(("import", "lerobot", str(at["export"]), "held_out=0.25", "logger=none")),
        "mnist": Verb(
            (
                *("mnist", *few, "jobs=1", "methods=[grpo_kl,sft_2,sft_distilled]", "rates=2", "highest_rate=1e-2"),
                *("lengths=[2]", "checkpoints=2", "widths=[]", f"data_dir={given / 'images'}"),
            ),
        ),
        "plasticity": Verb(
            (
                *("plasticity", str(at["sft"]), *few, f"env={given / 'other.yaml'}", "num_envs=4", "num_workers=1"),
                "unnorm_key=slide",
                *(f"rl.{word}" for word in ("iterations=2", "grid=1x2", "per_point=4", "save_every=1", *probed)),
            ),
            workers=True,
        ),
        "sweep": Verb(
            (
                *(
                    "sweep",
                    *small,
                    "unnorm_key=slide",
                    f"prior={given / 'other.yaml'}",
                    "new_episodes=4",
                    "prior_episodes=4",
                ),
                *("checkpoints=1", "method=sft,rl", "seed=0,1", "collect.policy=slides:Leftward", "collect.grid=2x1"),
                *("collect.per_point=1", "collect.max_attempts=30", "sft.epochs=2", "sft.save_every=1"),
                *("rl.iterations=2", "rl.grid=1x2", "rl.per_point=4", "rl.save_every=1"),
                *(f"{method}.{word}" for method in ("sft", "rl") for word in probed),
            ),
            workers=True,
        ),
        "report": Verb(("report", str(at["sweep"]))),
        "distill": Verb(
            (
                *("distill", *few, "grid=1x1", "per_point=2", "iterations=2", "updates=2", "num_envs=2"),
                *("num_workers=1", "probe_every=0", "eval_episodes=0", "save_every=1"),
            ),
            **collected,
        ),
        "llm annotate": Verb(
            (
                *("llm", "annotate", *model, "task=science", "samples=2", "rejected=true", "max_new_tokens=4"),
                "max_examples=8",
            ),
            language=True,
        ),
        "llm sft": Verb(("llm", "sft", *taught, "batch_size=4"), language=True),
        "llm kl": Verb(("llm", "kl", *few, f"model={at['llm sft']}", f"data_dir={given / 'rows'}"), language=True),
        **{
            f"llm {name}": Verb(("llm", name, *taught, "group_size=4", "prompts_per_step=2"), language=True)
            for name in ("grpo", "reinforce")
        },
        "llm eval": Verb(
            ("llm", "eval", *model, "max_new_tokens=4", "prior_tasks=[winogrande]", "examples=4", "eval_prompts=2"),
            language=True,
        ),
    }
