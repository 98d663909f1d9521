"""`vla-razor save` and `push`: a copy that decides alike, its card, and the Hub's side of an upload."""

import base64
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from tests.verbs.support import INSTRUCTION, done, small_policy, told
from vla_razor.config import compose
from vla_razor.files import write_json
from vla_razor.policies.load import load_model
from vla_razor.runs import origin_of
from vla_razor.statistics import Success, paired_difference, policy_summary, wilson

QUIET = ("device=cpu", "logger=none")
OUTCOMES = {"base": [1, 1, 1, 0], "tuned": [1, 0, 0, 0]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policies") / "base"
    small_policy().save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


@pytest.fixture(scope="module")
def trained(base: Path) -> Path:
    """A finished run that trained an adapter, which has forgotten half of what the base could do."""
    run = base.parent / "run"
    policy = load_model(base).add_lora(2, generator=torch.Generator().manual_seed(0))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1
    policy.save_pretrained(run / "checkpoints" / "step_3")
    asked, learned = f"other_instructions=['{INSTRUCTION}']", "demos=/home/me/demos"
    config = OmegaConf.merge({"verb": "sft"}, compose("sft", [f"policy={base}", "lora_rank=2", asked, learned, *QUIET]))
    (run / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    rates = {name: wilson(sum(outcomes), 4) for name, outcomes in OUTCOMES.items()}
    scores = {name: Success(success_once=rate, success_at_end=rate) for name, rate in rates.items()}
    pair: dict[str, Any] = {
        "episodes": 4,
        "success_at_end": paired_difference(OUTCOMES["tuned"], OUTCOMES["base"])._asdict(),
    }
    moved = {"base": None, "tuned": {"per_token": 0.5, "per_action": 3.5, "sharpening": 0.5, "displacement": 3.0}}
    entries = {name: policy_summary({"pick_can": s}, {"open_top_drawer": s}, moved[name]) for name, s in scores.items()}
    comparison = {"tasks": {"pick_can": pair, "open_top_drawer": pair}, "prior_mean": pair}
    write_json(run / "summary.json", {"policies": entries, "comparison": comparison, "versions": {"sapien": "3.0"}})
    return run


def saved(run: Path, out: Path, *words: object) -> Path:
    done("save", run, *words, f"out={out}", *QUIET)
    return out / "checkpoints" / "step_3"


def front(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_an_adapter_is_kept_as_it_is_but_for_what_it_calls_its_base(trained: Path, tmp_path: Path) -> None:
    folder = saved(trained, tmp_path / "out", "base_name=me/base")
    ours, theirs = (
        json.loads((f / "adapter_config.json").read_text()) for f in (folder, trained / "checkpoints/step_3")
    )
    assert ours.pop("base_model_name_or_path") == "me/base" != theirs.pop("base_model_name_or_path")
    assert ours == theirs
    weights = "adapter_model.safetensors"
    assert (folder / weights).read_bytes() == (trained / "checkpoints/step_3" / weights).read_bytes()
    assert front((folder / "README.md").read_text())["base_model"] == "me/base"


def test_the_card_says_what_was_forgotten_and_no_path_of_this_machine(
    trained: Path, base: Path, tmp_path: Path
) -> None:
    card = (saved(trained, tmp_path / "out") / "README.md").read_text()
    assert "| open_top_drawer | 3 of 4, 75% [30, 95] | 1 of 4, 25% [5, 70] | -50% [" in card
    assert "- success over all prior tasks, against the base's from the same starts: -50% [" in card
    assert "forward KL (nats an action): 3.5" in card and "| demos | demos |" in card and "sapien 3.0" in card
    assert str(base.parent) not in card and "/home/me" not in card
    facts = front(card)
    assert facts["license"] == "mit"
    results = {one["dataset"]["name"]: one["metrics"][0]["value"] for one in facts["model-index"][0]["results"]}
    assert results == {"pick_can": 0.25, "open_top_drawer": 0.25}


def test_a_merged_policy_decides_as_the_adapted_one_and_knows_its_base(
    trained: Path, base: Path, tmp_path: Path
) -> None:
    folder = saved(trained, tmp_path / "out", "merge=true")
    merged, adapted = load_model(folder), load_model(trained).merge_lora()
    for name, weight in adapted.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], weight)
    assert not merged.has_adapter and origin_of(tmp_path / "out", "policy") == str(base)
    moved = json.loads((tmp_path / "out" / "summary.json").read_text())["merging_moved"]
    assert 0 <= moved < 1e-6


def test_a_merge_that_moves_the_policy_is_refused(trained: Path, tmp_path: Path) -> None:
    words = ("merge=true", "dtype=bfloat16", "merge_tolerance=1e-9", f"out={tmp_path / 'out'}", *QUIET)
    result = told("save", trained, *words)
    assert result.exit_code == 2
    assert re.search(r"merging in bfloat16 moves it by \S+ nats a token", result.output), result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["save"], "save needs a policy"),
        (["save", "nowhere"], "policy=nowhere: there is no such folder"),
        (["save", "{base}", "merge=true"], "it has no adapter to merge"),
        (["push", "{run}"], "push needs a policy and a repository"),
        (["push", "{run}", "a/b/c"], "repo=a/b/c: "),
        (["push", "{run}", "me/tuned"], "say where they find it with base_name=OWNER/NAME"),
    ],
)
def test_what_is_refused(words: list[str], said: str, trained: Path, base: Path, tmp_path: Path) -> None:
    given = [word.format(base=base, run=trained) for word in words]
    result = told(*given, f"out={tmp_path / 'out'}", *QUIET)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split()), result.output
    assert not (tmp_path / "out").exists()


class Hub(ThreadingHTTPServer):
    """As much of the Hub as an upload asks for, which keeps what it is given. `refuses`: the status of a commit."""

    files: dict[str, bytes]
    made: list[dict[str, Any]]
    refuses: int | None


class Answers(BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self.answer(
            {"name": "me", "type": "user"} if self.headers.get("Authorization") == "Bearer right" else None, 401
        )

    def do_POST(self) -> None:
        body, place = self.rfile.read(int(self.headers["Content-Length"])), f"http://{self.headers['Host']}/me/tuned"
        if self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            self.answer({"url": place})
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]})
        elif "/commit/" in self.path and self.server.refuses:
            self.answer(None, self.server.refuses)
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitOid": "c0ffee", "commitUrl": f"{place}/commit/c0ffee", "success": True})
        else:
            self.answer({"errors": [], "warnings": []})

    def answer(self, content: object, refused: int = 200) -> None:
        body = json.dumps(content or {"error": "you may not"}).encode()
        self.send_response(200 if content else refused)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Says nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    served = Hub(("127.0.0.1", 0), Answers)
    served.files, served.made, served.refuses = {}, [], None
    Thread(target=served.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{served.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "right")
    yield served
    served.shutdown()
    served.server_close()


def test_what_is_pushed_is_what_is_saved(trained: Path, hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done("push", trained, "me/tuned", "base_name=me/base", f"out={out}", *QUIET)
    kept = {path.name: path.read_bytes() for path in (out / "checkpoints" / "step_3").iterdir()}
    assert hub.files == kept and "README.md" in kept
    assert [(one["name"], one["visibility"]) for one in hub.made] == [("tuned", "private")]
    assert json.loads((out / "summary.json").read_text())["commit"] == "c0ffee"


def test_a_wrong_login_is_refused_before_the_work(trained: Path, hub: Hub, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_TOKEN", "wrong")
    words = ("push", trained, "me/tuned", "base_name=me/base", f"out={tmp_path / 'out'}", *QUIET)
    result = told(*words)
    assert result.exit_code == 2 and "the Hub refuses it to this login" in result.output
    assert not (tmp_path / "out").exists() and not hub.files


def test_an_upload_that_fails_is_gone_on_with(trained: Path, hub: Hub, tmp_path: Path) -> None:
    hub.refuses, out = 413, tmp_path / "out"
    result = told("push", trained, "me/tuned", "base_name=me/base", f"out={out}", *QUIET)
    assert result.exit_code == 1 and "the Hub answered" in result.output and not hub.files
    hub.refuses = None
    done("resume", out)
    assert "adapter_model.safetensors" in hub.files
