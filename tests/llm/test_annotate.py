"""`vla-razor llm annotate`: coverage, refusals, kill and resume, bad input, a local teacher."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from tests.llm.teaching import RIGHT, WRONG, Handler, Server, right, serving
from tests.verbs.support import CommandLine, until
from vla_razor import cli, config
from vla_razor.errors import RunFailed
from vla_razor.llm import annotations
from vla_razor.llm.annotations import FILE, Annotation
from vla_razor.llm.local_teacher import LocalTeacher
from vla_razor.llm.models import open_model
from vla_razor.llm.tasks import science
from vla_razor.llm.teacher import Request
from vla_razor.runs import Run
from vla_razor.verbs.language import annotate as llm_annotate


def write_questions(folder: Path, count: int) -> Path:
    """Questions of the science task; four fifths of them are for training."""
    (folder / "sciknoweval_chemistry_l3").mkdir(parents=True)
    choices = {"label": ["A", "B", "C", "D"], "text": ["tin", "lead", "iron", "zinc"]}
    rows = [
        {"question": f"Metal {n}?", "type": "mcq-4-choices", "answerKey": "B", "choices": choices} for n in range(count)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "sciknoweval_chemistry_l3" / "some.jsonl").write_text(text)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_questions(tmp_path / "data", 40)


def training_prompts(data: Path) -> list[str]:
    return [example.prompt for example in science.load(data, direct=False).train]


def settings(data: Path, out: Path, server: Server | None = None, **own: Any) -> list[str]:
    values: dict[str, Any] = {"data_dir": data, "out": out, "task": "science", "logger": "none"}
    if server is not None:
        values |= {"endpoint": server.url, "teacher": "sage", "requests_per_minute": 60_000}
    return [f"{key}={value}" for key, value in (values | own).items()]


def composed(*overrides: str) -> DictConfig:
    return config.compose("llm_annotate", overrides)


def annotated(*overrides: str) -> list[Annotation]:
    """Runs the verb here."""
    found = composed(*overrides)
    with Run.create(found.out, found, "llm_annotate") as run:
        llm_annotate.run(run.config, run)
    return annotations.read(Path(found.out))


def test_a_run_keeps_pairs_and_reports_its_coverage(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = training_prompts(data)

    def mixed(handler: Handler, prompt: str, before: int) -> None:
        place = prompts.index(prompt)
        if place == 0:
            handler.answer("")
        elif place == 1 and before == 0:
            handler.send(500, {})
        else:
            handler.answer(WRONG if before == 0 else RIGHT, "length")

    with serving(mixed) as server:
        made = annotated(*settings(data, tmp_path / "run", server, rejected="true", samples=5))
    assert {annotation.prompt for annotation in made} == set(prompts) and len(made) == len(prompts)
    by_prompt = {annotation.prompt: annotation for annotation in made}
    assert all(by_prompt[prompt][3:6] == (RIGHT, WRONG, 2) for prompt in prompts[2:])
    assert by_prompt[prompts[0]][3:6] == (None, None, 5)
    assert by_prompt[prompts[1]][3:6] == (RIGHT, None, 5)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["annotations"]
    count = len(prompts)
    assert summary["prompts"] == count and summary["covered"]["successes"] == count - 1
    assert summary["pairs"]["successes"] == count - 2 and summary["samples"] == 2 * (count - 2) + 10
    assert summary["failures"] == {"cut_off": 2 * (count - 2) + 5, "empty": 5, "server_error": 1}
    printed = capsys.readouterr().out
    assert f"{count - 1}/{count} = " in printed and "server error" in printed
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, count + 1))


def test_a_refused_run_leaves_no_folder(data: Path, tmp_path: Path) -> None:
    refusal = {"error": {"message": "Incorrect API key provided"}}
    with serving(lambda handler, *_: handler.send(401, refusal)) as server:
        result = CliRunner().invoke(cli.app, ["llm", "annotate", *settings(data, tmp_path / "run", server)])
    assert result.exit_code == 2 and "Incorrect API key provided" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_refused_midway_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", " sk-1\n")
    expired = False

    def expiring(handler: Handler, *_: Any) -> None:
        if expired and handler.headers["Authorization"] == "Bearer sk-1":
            handler.send(403, {"error": {"message": "expired"}})
        else:
            right(handler, "", 0)

    with serving(expiring) as server:
        words = settings(data, tmp_path / "run", server, concurrency=1, api_key_variable="TEACHER_KEY")
        found = composed(*words)
        with Run.create(found.out, found, "llm_annotate") as run:
            store = tmp_path / "run" / FILE
            append = annotations.append

            def append_and_expire(path: Path, annotation: Annotation) -> None:
                nonlocal expired
                append(path, annotation)
                expired = len(store.read_text().splitlines()) == 10

            monkeypatch.setattr(annotations, "append", append_and_expire)
            with pytest.raises(RunFailed, match=r"HTTP 403, expired.* 10 annotated prompts are kept; go on with"):
                llm_annotate.run(run.config, run)
        monkeypatch.setattr(annotations, "append", append)
        monkeypatch.setenv("TEACHER_KEY", "sk-2")
        result = CliRunner().invoke(cli.app, ["resume", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    made = annotations.read(tmp_path / "run")
    assert sorted(annotation.prompt for annotation in made) == sorted(training_prompts(data))
    assert sorted(server.asked.values()) == [1] * (len(made) - 1) + [2]


@pytest.mark.slow
def test_a_killed_run_asks_again_only_what_was_in_flight(tmp_path: Path) -> None:
    data, out = write_questions(tmp_path / "data", 100), tmp_path / "run"
    command, prompts = CommandLine(tmp_path), training_prompts(data)

    killed = threading.Event()

    def slow(handler: Handler, prompt: str, before: int) -> None:
        """The thirty-first prompt and those after it are in flight when the run is killed."""
        if len(server.asked) > 30:
            killed.wait(60)
        handler.answer(RIGHT)

    def lines() -> int:
        return (out / FILE).read_bytes().count(b"\n") if (out / FILE).exists() else 0

    with serving(slow) as server:
        process = command.start("llm", "annotate", *settings(data, out, server, concurrency=4))
        until(lambda: process.poll() is not None or lines() >= 20, seconds=60)
        os.kill(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, output + errors
        assert 20 <= lines() <= 30
        killed.set()
        kept = annotations.take_up(out / FILE, dict.fromkeys(prompts, json.dumps({"letter": "B", "text": "lead"})))
        with (out / FILE).open("ab") as file:
            file.write(b'{"prompt": "half a li')
        command.run("resume", out)
    made = annotations.read(out)
    assert made[: len(kept)] == kept
    assert sorted(annotation.prompt for annotation in made) == sorted(prompts)
    asked_twice = [prompt for prompt, times in server.asked.items() if times > 1]
    assert len(asked_twice) <= 4 and max(server.asked.values()) <= 2
    assert not {annotation.prompt for annotation in kept} & set(asked_twice)
    assert json.loads((out / "summary.json").read_text())["annotations"]["covered"]["rate"] == 1


@pytest.mark.slow
def test_ctrl_c_does_not_wait_for_the_teacher(data: Path, tmp_path: Path) -> None:
    released = threading.Event()

    def stuck(handler: Handler, *_: Any) -> None:
        released.wait(60)

    with serving(stuck) as server:
        command = CommandLine(tmp_path)
        process = command.start("llm", "annotate", *settings(data, tmp_path / "run", server))
        until(lambda: process.poll() is not None or len(server.times) == 8, seconds=60)
        begin = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 130 and "go on with: vla-razor resume" in errors
        assert "Traceback" not in errors and time.monotonic() - begin < 10
        released.set()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["endpoint=http://127.0.0.1:1/v1"], "say teacher=, the name"),
        (["endpoint=127.0.0.1:1/v1", "teacher=sage"], "expected an address"),
        (["endpoint=http://127.0.0.1:1/v1", "teacher=sage"], "cannot be reached"),
        (["data_dir=/nowhere"], "/nowhere/sciknoweval_chemistry_l3: expected"),
        (["samples=0"], "bad value samples=0"),
        (["teacher=/nowhere/at/all"], "teacher=/nowhere/at/all: there is no such folder"),
    ],
)
def test_bad_input(data: Path, tmp_path: Path, words: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = CliRunner().invoke(cli.app, ["llm", "annotate", *settings(data, tmp_path / "run"), *words])
    assert result.exit_code == 2 and says in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of a few words, some of which are right answers by chance."""
    folder = tmp_path_factory.mktemp("local")
    words = ["<end>", "<unknown>", "user", "assistant", "A", "B", "C", "D"]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unknown>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", unk_token="<unknown>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    shape = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_local_teacher_resumes_with_the_same_responses(local: Path, data: Path, tmp_path: Path) -> None:
    def words(out: str) -> list[str]:
        own = {"teacher": local, "max_new_tokens": 2, "samples": 6, "concurrency": 3, "dtype": "float32", "seed": 3}
        return settings(data, tmp_path / out, device="cpu", rejected="true", **own)

    state = torch.random.get_rng_state()
    whole = annotated(*words("whole"))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert 0 < sum(annotation.chosen is not None for annotation in whole) < len(whole)
    assert {annotation.samples for annotation in whole} == {3, 6}
    assert len({annotation.rejected for annotation in whole}) > 3
    assert any(annotation.failures.get("cut_off") for annotation in whole)
    assert sorted(annotation.prompt for annotation in whole) == sorted(training_prompts(data))

    found = composed(*words("stopped"))
    with Run.create(found.out, found, "llm_annotate"):
        lines = (tmp_path / "whole" / FILE).read_bytes().splitlines(keepends=True)
        (tmp_path / "stopped" / FILE).write_bytes(b"".join(lines[:5]) + lines[5][:30])
    result = CliRunner().invoke(cli.app, ["resume", found.out])
    assert result.exit_code == 0, result.output
    assert annotations.read(tmp_path / "stopped") == whole

    other = annotated(*words("other"), "seed=4")
    assert [a.rejected for a in other] != [a.rejected for a in whole]


def test_without_a_teacher_the_model_answers(local: Path, data: Path, tmp_path: Path) -> None:
    made = annotated(
        *settings(data, tmp_path / "run", model=local, device="cpu", samples=1, max_new_tokens=1, max_examples=2),
        "dtype=float32",
    )
    assert len(made) == 2 and {annotation.teacher for annotation in made} == {str(local)}


@pytest.mark.parametrize(("temperature", "distinct"), [(1.0, True), (None, False)])
def test_a_local_teacher_samples_its_whole_distribution(local: Path, temperature: float | None, distinct: bool) -> None:
    """Whatever the model's own settings would leave out, which an instruct model's do."""
    model = open_model(local)
    model.model.generation_config.top_k = 1
    model.model.generation_config.do_sample = True
    teacher = LocalTeacher(model, responses_at_once=40, temperature=temperature, max_new_tokens=1, seed=0)
    answer = teacher.ask(Request([{"role": "user", "content": "A B"}], 0, 0, 40)).result()
    assert (len({response.text for response in answer.responses}) > 3) == distinct
