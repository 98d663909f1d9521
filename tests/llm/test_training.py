"""The four trainers: what differs from TRL's own, whole runs of each method and task, kill and resume, bad input."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tests.llm.support import QWEN_WORDS, small_data, small_model
from tests.verbs.support import MAIN
from vla_razor import cli
from vla_razor.config import compose
from vla_razor.core import losses
from vla_razor.llm import annotations, tasks, training
from vla_razor.llm.annotations import Annotation
from vla_razor.llm.models import open_model
from vla_razor.llm.tasks import Splits

SMALL = [
    "dtype=float32",
    "device=cpu",
    "direct=true",
    "max_new_tokens=4",
    "micro_batch_size=4",
    "warmup_steps=0",
    "learning_rate=1e-3",
    "probe_prompts=2",
    "eval_prompts=2",
    "probe_every=1",
    "save_every=1",
    "gradient_checkpointing=false",
    "logger=none",
]
ON_POLICY = ["group_size=4", "prompts_per_step=2"]
OFFLINE = ["batch_size=4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data(tmp_path_factory.mktemp("data") / "rows")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLA_RAZOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


class HasLetter:
    """A stand-in task: right is what contains an "e"."""

    def load(self, data_dir: Path | None, *, direct: bool) -> Splits:
        raise NotImplementedError

    def rewards(self, completions: Sequence[str], golds: Sequence[str]) -> list[float]:
        return [float("e" in completion) for completion in completions]


@pytest.mark.parametrize("verb", ["llm_reinforce", "llm_grpo"])
def test_advantages(verb: str, model: Path, data: Path, tmp_path: Path) -> None:
    """1-0 REINFORCE: the reward itself. GRPO: the reward less its group's mean, not divided by anything."""
    words = [*SMALL, "group_size=16", "prompts_per_step=2", "max_new_tokens=8", f"data_dir={data}", f"model={model}"]
    config = compose(verb, words)
    language = open_model(model)
    examples = tasks.open_task("science").load(data, direct=True).train[:2]
    trainer: Any = training.on_policy(language, config, HasLetter(), examples, tmp_path, [])
    rows = [{"prompt": example.messages, "gold": example.gold} for example in examples for _ in range(16)]
    torch.manual_seed(0)
    output = trainer._generate_and_score_completions(rows)
    texts = language.tokenizer.batch_decode(output["completion_ids"], skip_special_tokens=True)
    rewards = torch.tensor(HasLetter().rewards(texts, []))
    assert 0 < rewards.sum() < len(rewards)
    grouped = rewards.view(2, 16)
    expected = rewards if verb == "llm_reinforce" else (grouped - grouped.mean(1, keepdim=True)).flatten()
    assert torch.allclose(output["advantages"], expected)


@pytest.mark.parametrize("log_probs", ["sum", "mean"])
def test_simpo_is_the_papers_loss(log_probs: str, model: Path, data: Path, tmp_path: Path) -> None:
    config = compose("llm_simpo", [*SMALL, *OFFLINE, f"model={model}", f"log_probs={log_probs}", "margin=0.7"])
    language = open_model(model)
    examples = tasks.open_task("science").load(data, direct=True).train[:4]
    pairs = [(example, "Answer: A", "It is B, I think") for example in examples]
    trainer: Any = training.simpo(language, config, pairs, tmp_path, [])
    language.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        found, _ = trainer.get_batch_loss_metrics(trainer.model, batch)

        def log_prob(name: str) -> torch.Tensor:
            ids, labels = batch[f"{name}_input_ids"], batch[f"{name}_labels"]
            logits = language.model(ids, attention_mask=batch[f"{name}_attention_mask"]).logits
            each = -F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
            each, kept = each.view(labels.shape[0], -1), labels[:, 1:] != -100
            return each.sum(1) if log_probs == "sum" else each.sum(1) / kept.sum(1)

        expected = losses.simpo(log_prob("chosen"), log_prob("rejected"), margin=0.7)
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_sft_learns_the_answer_alone(model: Path, data: Path, tmp_path: Path) -> None:
    """Every label is a token of the answer, and the answer's end is learned too."""
    config = compose("llm_sft", [*SMALL, *OFFLINE, f"model={model}"])
    language = open_model(model)
    examples = tasks.open_task("science").load(data, direct=True).train[:4]
    trainer: Any = training.sft(language, config, [(e, e.answer) for e in examples], tmp_path, [])
    batch = next(iter(trainer.get_train_dataloader()))
    for labels in batch["labels"]:
        text: str = language.tokenizer.decode(labels[labels != -100])
        assert text.startswith("Answer: ") and text.rstrip("\n").endswith("<|im_end|>") and "user" not in text


@pytest.mark.parametrize("method", ["sft", "simpo", "grpo", "reinforce"])
@pytest.mark.parametrize("task", ["math", "science", "tool"])
def test_each_method_and_task_starts_at_qwens_vocabulary(
    method: str, task: str, data: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    model = tmp_path_factory.getbasetemp() / "qwen"
    if not model.is_dir():
        small_model(model, words=QWEN_WORDS)
    words = [*SMALL, f"data_dir={data}", f"model={model}", "micro_batch_size=2"]
    words += ["group_size=2", "prompts_per_step=1"] if method in ("grpo", "reinforce") else ["batch_size=2"]
    if method == "simpo":
        train = tasks.open_task(task).load(data, direct=True).train
        made = [Annotation(e.prompt, e.gold, e.group, e.answer, "I do not know.", 2, "teacher", {}) for e in train[:2]]
        words.append(f"annotations={noted(made, tmp_path / 'notes')}")
    summary = run(["llm", method, f"task={task}", "max_steps=1", f"out={tmp_path / 'run'}", *words], tmp_path / "run")
    assert summary["forward_kl"]["per_token"] >= 0
    assert summary["base"]["episodes"] == summary["tuned"]["episodes"] == 2


def test_a_run_learns_moves_and_can_be_measured_again(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [*SMALL, *OFFLINE, "epochs=6", "max_examples=16", f"data_dir={data}", f"model={model}", "probe_every=6"]
    summary = run(["llm", "sft", f"out={out}", *words, "save_every=6"], out)
    rows = rows_of(out)
    assert [row["step"] for row in rows] == list(range(1, 25))
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    measured = [row["forward_kl_per_token"] for row in rows if "forward_kl_per_token" in row]
    assert len(measured) == 4 and 0 < measured[0] < measured[-1]
    assert summary["forward_kl"]["per_token"] == pytest.approx(measured[-1], rel=1e-6)
    again = [f"model={out}", f"out={tmp_path / 'kl'}", f"data_dir={data}", "probe_prompts=2", "max_new_tokens=4"]
    kl = run(["llm", "kl", *again, "dtype=float32", "device=cpu", "direct=true", "logger=none"], tmp_path / "kl")
    assert kl["forward_kl"]["per_token"] == pytest.approx(measured[-1], rel=1e-4)
    assert {path.name for path in (out / "checkpoints").iterdir()} == {f"step_{n}" for n in (6, 12, 18, 24)}
    assert not list((out / "checkpoints").rglob("optimizer.pt"))


def test_an_adapter_trains_and_its_base_stays(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [*SMALL, *ON_POLICY, "lora_rank=4", "max_steps=2", f"data_dir={data}", f"model={model}", "task=science"]
    run(["llm", "grpo", f"out={out}", *words], out)
    folder = out / "checkpoints" / "step_2"
    assert (folder / "adapter_model.safetensors").is_file() and not (folder / "model.safetensors").is_file()
    again = [f"model={out}", f"out={tmp_path / 'kl'}", f"data_dir={data}", "probe_prompts=2", "max_new_tokens=4"]
    kl = run(["llm", "kl", *again, "dtype=float32", "device=cpu", "direct=true", "logger=none"], tmp_path / "kl")
    assert kl["forward_kl"]["tokens"] >= 2


@pytest.mark.parametrize("method", ["sft", "simpo"])
def test_annotations_are_trained_on(method: str, model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train = tasks.open_task("science").load(data, direct=True).train
    made = [
        Annotation(e.prompt, e.gold, e.group, f"I see. {e.answer}" if n else None, "Answer: C", 2, "teacher", {})
        for n, e in enumerate(train[:9])
    ]
    notes = noted(made, tmp_path / "notes")
    words = [*SMALL, *OFFLINE, "task=science", "epochs=2", f"data_dir={data}", f"model={model}"]
    summary = run(["llm", method, f"annotations={notes}", f"out={out}", *words], out)
    assert len(rows_of(out)) == 4  # eight of the nine have a right response
    assert summary["forward_kl"]["per_token"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "rank"), [("float32", 0), ("bfloat16", 0), ("bfloat16", 4)])
def test_a_killed_run_resumes_to_the_same_end(dtype: str, rank: int, model: Path, data: Path, tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        words = [*SMALL, *OFFLINE, "epochs=5", "max_examples=16", f"data_dir={data}", f"model={model}"]
        own = [f"dtype={dtype}", f"lora_rank={rank}", "save_every=5", "probe_every=0", "eval_prompts=0"]
        return ["llm", "sft", f"out={out}", *words, *own]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(command(whole), whole)
    process = subprocess.Popen([sys.executable, "-m", "vla_razor.cli", *command(killed)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (killed / "checkpoints" / "step_10").is_dir() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "summary.json").exists()
    run(["resume", str(killed)], killed)
    assert losses_of(whole) == losses_of(killed)
    assert [row["num_tokens"] for row in rows_of(whole)] == [row["num_tokens"] for row in rows_of(killed)]
    name = "adapter_model.safetensors" if rank else "model.safetensors"
    one, other = (load_file(out / "checkpoints" / "step_20" / name) for out in (whole, killed))
    assert {tensor.dtype for tensor in one.values()} == {torch.float32} and moments_of(whole, 20) == {torch.float32}
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_its_step_and_goes_on_with_the_next(
    number: int, model: Path, data: Path, tmp_path: Path
) -> None:
    words = [*SMALL, *OFFLINE, "epochs=5", "max_examples=16", f"data_dir={data}", f"model={model}", "dtype=float32"]
    words += ["save_every=1000", "probe_every=0", "eval_prompts=0"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(["llm", "sft", f"out={whole}", *words], whole)
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "llm", "sft", f"out={stopped}", *words], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not ((stopped / "metrics.jsonl").is_file() and len(rows_of(stopped)) >= 3) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=60) == 130
    (saved,) = (stopped / "checkpoints").iterdir()
    assert saved.name == f"step_{len(rows_of(stopped))}"
    run(["resume", str(stopped)], stopped)
    assert losses_of(whole) == losses_of(stopped)


@pytest.mark.slow
def test_two_processes_train_to_the_losses_of_one(model: Path, data: Path, tmp_path: Path) -> None:
    words = [
        *SMALL,
        *OFFLINE,
        "micro_batch_size=2",
        "max_steps=4",
        f"data_dir={data}",
        f"model={model}",
        "save_every=2",
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    run(["llm", "sft", f"out={one}", *words], one)
    several = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m"]
    done = subprocess.run(
        [*several, "vla_razor.cli", "llm", "sft", f"out={two}", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows_of(two)] == [1, 2, 3, 4]
    assert losses_of(two) == pytest.approx(losses_of(one), rel=1e-4)
    moved = [[row["forward_kl_per_token"] for row in rows_of(out)] for out in (one, two)]
    assert moved[1] == pytest.approx(moved[0], rel=1e-2)
    assert (two / "checkpoints" / "step_4" / "model.safetensors").is_file()


def test_several_processes_need_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(cli.app, ["llm", "sft"])
    assert result.exit_code == 2 and "needs out=DIR" in result.stderr
    result = CliRunner().invoke(cli.app, ["llm", "kl"])
    assert result.exit_code == 2 and "llm_kl runs in one process" in result.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sft", "task=maths"], "bad value task=maths"),
        (["sft", "data_dir=/nowhere"], "/nowhere"),
        (["sft", "model=/nowhere"], "model=/nowhere: there is no such folder"),
        (["sft", "batch_size=6"], "micro_batch_size=4 on each of 1 devices does not divide a batch of 6"),
        (["grpo", "prompts_per_step=64", "group_size=2"], "there are only"),
        (["grpo", "use_vllm=true"], "vLLM is not installed"),
        (["simpo"], "simpo needs right and wrong answers"),
        (["sft", "annotations=/nowhere"], "/nowhere"),
        (["kl", "model={model}"], "does not say what it was fine-tuned from"),
    ],
)
def test_bad_input_is_one_message(words: list[str], says: str, model: Path, data: Path, tmp_path: Path) -> None:
    own = {word.partition("=")[0] for word in words}
    common = [word for word in SMALL if words[0] != "kl" or word.startswith(("dtype", "device", "direct"))]
    given = [f"model={model}", f"data_dir={data}", f"out={tmp_path / 'run'}", *common]
    filled = [words[0], *(word.replace("{model}", str(model)) for word in words[1:])]
    arguments = ["llm", *filled, *(word for word in given if word.partition("=")[0] not in own)]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2, result.output
    assert says in result.stderr and "Traceback" not in result.output
    assert not (tmp_path / "run").exists()


def noted(made: Sequence[Annotation], folder: Path) -> Path:
    folder.mkdir()
    for one in made:
        annotations.append(folder / annotations.FILE, one)
    return folder


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses_of(out: Path) -> list[float]:
    return [row["loss"] for row in rows_of(out)]


def run(arguments: list[str], out: Path) -> dict[str, Any]:
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output + str(result.exception)
    return json.loads((out / "summary.json").read_text())


@pytest.mark.parametrize("rank", [0, 4], ids=["all weights", "LoRA"])
@pytest.mark.parametrize("method", ["sft", "simpo", "grpo", "reinforce"])
def test_what_learns_is_float32_and_products_are_bfloat16(
    method: str, rank: int, model: Path, data: Path, tmp_path: Path
) -> None:
    """Where it is sampled from and where it is learned from; an adapter's base may be bfloat16."""
    stored_in_bfloat16 = tmp_path / "model"
    shutil.copytree(model, stored_in_bfloat16)
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(stored_in_bfloat16)
    own = [word for word in SMALL if not word.startswith(("dtype", "max_new_tokens"))]
    words = [*own, *(ON_POLICY if method in ("grpo", "reinforce") else OFFLINE), "dtype=bfloat16", "max_steps=2"]
    config = compose(f"llm_{method}", [*words, "max_new_tokens=8", f"lora_rank={rank}"])
    language = open_model(stored_in_bfloat16, dtype="bfloat16", learning=not rank)
    examples = tasks.open_task("science").load(data, direct=True).train[:8]
    if method == "sft":
        trainer: Any = training.sft(language, config, [(e, e.answer) for e in examples], tmp_path, [])
    elif method == "simpo":
        trainer = training.simpo(language, config, [(e, e.answer, "It is not.") for e in examples], tmp_path, [])
    else:
        trainer = training.on_policy(language, config, HasLetter(), examples, tmp_path, [])
    products, samples, generating = set[torch.dtype](), set[torch.dtype](), False
    generate = trainer.model.generate

    def sampled(*arguments: Any, **settings: Any) -> Any:
        nonlocal generating
        generating = True
        found = generate(*arguments, **settings)
        generating = False
        return found

    trainer.model.generate = sampled
    layer = trainer.model.get_decoder().layers[0].mlp.down_proj
    layer.register_forward_hook(lambda _, __, output: (samples if generating else products).add(output.dtype))
    before = {name: one.detach().clone() for name, one in trainer.model.named_parameters()}
    trainer.train()
    learning = {name: one for name, one in trainer.model.named_parameters() if one.requires_grad}
    assert {one.dtype for one in learning.values()} == {torch.float32}
    assert {one.dtype for one in before.values()} == ({torch.float32, torch.bfloat16} if rank else {torch.float32})
    states = trainer.optimizer.state.values()
    assert states and {one[name].dtype for one in states for name in ("exp_avg", "exp_avg_sq")} == {torch.float32}
    assert products == {torch.bfloat16} and samples in (set(), {torch.bfloat16})
    assert bool(samples) == (method in ("grpo", "reinforce"))
    assert any(not torch.equal(one, before[name]) for name, one in learning.items())


@pytest.mark.parametrize("rank", [0, 4], ids=["all weights", "LoRA"])
def test_a_penalty_is_on_the_base(rank: int, model: Path, data: Path, tmp_path: Path) -> None:
    """TRL keeps a copy of the base, or disables the adapter; without a penalty neither."""
    for coefficient in (0.0, 0.1):
        words = [*SMALL, *ON_POLICY, f"model={model}", f"kl_coefficient={coefficient}", f"lora_rank={rank}"]
        config, language = compose("llm_grpo", words), open_model(model)
        examples = tasks.open_task("science").load(data, direct=True).train[:4]
        trainer: Any = training.on_policy(language, config, HasLetter(), examples, tmp_path / str(coefficient), [])
        assert trainer.beta == coefficient
        assert (trainer.ref_model is not None) == (coefficient > 0 and not rank)


RATES = ["1e-6", "1e-5", "1e-4"]


@pytest.mark.parametrize("rate", RATES)
def test_bfloat16_learns_as_float32_does(rate: str, model: Path, data: Path, tmp_path: Path) -> None:
    """An update of 1e-6 is far below bfloat16's spacing at a weight of 0.02, which is 1.2e-4."""
    before, moved, losses = load_file(model / "model.safetensors"), {}, {}
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        own = [word for word in SMALL if word.partition("=")[0] not in ("dtype", "learning_rate", "save_every")]
        words = [*own, *OFFLINE, "max_steps=10", "save_every=10", "probe_every=0", f"data_dir={data}", f"model={model}"]
        run(["llm", "sft", f"out={out}", *words, f"dtype={dtype}", f"learning_rate={rate}", "eval_prompts=0"], out)
        after = load_file(out / "checkpoints" / "step_10" / "model.safetensors")
        changed = sum(int((after[name] != tensor).sum()) for name, tensor in before.items())
        moved[dtype] = changed / sum(tensor.numel() for tensor in before.values())
        losses[dtype] = losses_of(out)
        assert {tensor.dtype for tensor in after.values()} == {torch.float32}
        assert moments_of(out, 10) == {torch.float32}
    assert moved["bfloat16"] > 0.9 * moved["float32"] > 0.5
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    learned = {dtype: found[0] - found[-1] for dtype, found in losses.items()}
    if rate == "1e-4":
        assert learned["bfloat16"] == pytest.approx(learned["float32"], rel=0.1)


def moments_of(out: Path, step: int) -> set[torch.dtype]:
    """The precisions of AdamW's moments."""
    state = torch.load(trainer_state(out, step) / "optimizer.pt", weights_only=True)["state"]
    return {one[name].dtype for one in state.values() for name in ("exp_avg", "exp_avg_sq")}


def trainer_state(out: Path, step: int) -> Path:
    return out / "trainer_state" / "trainer" / f"checkpoint-{step}"
