"""The prior tasks: local rows become what lm-eval's own tasks expect; scores are cached; programs run within limits."""

import json
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from tests.llm.support import small_data, small_model
from tests.verbs.support import until
from vla_razor import cli
from vla_razor.config import compose
from vla_razor.errors import UserError
from vla_razor.llm import code, humaneval, prior_tasks, punkt
from vla_razor.llm.models import open_model
from vla_razor.llm.prior_tasks import BENCHMARKS, Score
from vla_razor.verbs.language import evaluate as llm_eval


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLA_RAZOR_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def data(shared: Path) -> Path:
    folder = shared / "data"
    if not (folder / "winogrande").is_dir():
        pytest.skip(f"the published data are absent: no folder {folder}")
    return folder


def opened(name: str, data: Path, folder: Path) -> Any:
    """lm-eval's task on the local rows (of MMLU, one subject)."""
    names = list(prior_tasks._write(BENCHMARKS[name], data, folder))
    chosen = "local_mmlu_anatomy" if name == "mmlu" else names[0]
    return prior_tasks._manager(folder).load([chosen])["tasks"][chosen]


@pytest.mark.parametrize(("name", "count"), [("hellaswag", 1000), ("truthfulqa", 817), ("winogrande", 1267)])
def test_every_row_is_asked(name: str, count: int, data: Path, tmp_path: Path) -> None:
    assert len(list(opened(name, data, tmp_path).eval_docs)) == count


def test_winogrande_asks_for_the_better_beginning(data: Path, tmp_path: Path) -> None:
    task = opened("winogrande", data, tmp_path)
    raw = [json.loads(line) for line in (data / "winogrande" / "winogrande.jsonl").read_text().splitlines()]
    for doc, row in list(zip(task.eval_docs, raw, strict=True))[:50]:
        assert task.doc_to_choice(doc) == row["context_options"]
        assert task.doc_to_target(doc) == row["continuation"].strip()
        assert task.doc_to_text(doc) == row["gold"]


def test_hellaswag_and_mmlu_keep_their_answers(data: Path, tmp_path: Path) -> None:
    task = opened("hellaswag", data, tmp_path / "h")
    raw = json.loads((data / "hellaswag" / "hellaswag.jsonl").read_text().splitlines()[0])
    doc = next(iter(task.eval_docs))
    assert int(task.doc_to_target(doc)) == raw["label"]
    assert task.doc_to_choice(doc)[raw["label"]].split()[-1] == raw["endings"][raw["label"]].split()[-1]
    subject = opened("mmlu", data, tmp_path / "m")
    doc = next(iter(subject.eval_docs))
    lines = (data / "mmlu" / "test" / "anatomy_test.csv").read_text().splitlines()
    assert subject.doc_to_target(doc) == int(lines[1].rsplit(",", 1)[1])
    assert "A. " in subject.doc_to_text(doc) and doc["question"][:20] in lines[1]
    assert len(list(subject.fewshot_docs())) == 5


def test_truthfulqa_is_scored_by_the_mass_on_true_answers(data: Path, tmp_path: Path) -> None:
    task = opened("truthfulqa", data, tmp_path)
    doc = next(iter(task.eval_docs))
    labels = doc["mc2_targets"]["labels"]
    likely = [(0.0 if label else -50.0, False) for label in labels]
    assert task.process_results(doc, likely)["acc"] == pytest.approx(1)
    assert task.process_results(doc, likely[::-1])["acc"] < 1


def test_the_canonical_programs_pass_and_others_do_not(data: Path) -> None:
    problems = prior_tasks._problems(data / "humaneval" / humaneval.FILE)
    assert len(problems) == 164
    for doc in problems[:12]:
        assert prior_tasks._passed(doc, [doc["canonical_solution"]]) == {"pass_at_1": 1.0}
    assert prior_tasks._passed(problems[0], ["    return None\n"]) == {"pass_at_1": 0.0}


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "x = bytearray(4 << 30)",
        "open('big', 'wb').write(b'0' * (8 << 20))",
        "import time; time.sleep(60)",
        "import os; os.kill(os.getpid(), 9)",
        "raise SystemExit(3)",
        "raise SystemExit(0)",
        "import os; os._exit(0)",
        "import os; os.execv('/bin/true', ['true'])",
        "import threading, os, time; threading.Timer(0.1, os._exit, (0,)).start(); time.sleep(60)",
        "import atexit, os; atexit.register(os._exit, 0); assert False",
        "import sys, os; sys.excepthook = lambda *_: os._exit(0); assert False",
        "import os; os.fork() or os._exit(0); assert False",
        "def f(:",
        "import os; assert os.environ.get('HOME')",
        "import vla_razor_secret",
        "\0",
    ],
)
def test_programs_end_within_limits(program: str) -> None:
    begin = time.monotonic()
    assert not code.passes(program, seconds=1.0)
    assert time.monotonic() - begin < 5


def test_a_function_that_ends_the_process_is_not_right(data: Path) -> None:
    """HumanEval asserts after what the model wrote."""
    problem = prior_tasks._problems(data / "humaneval" / humaneval.FILE)[0]
    for ending in ("raise SystemExit", "import os; os._exit(0)", "exit()", "quit(0)"):
        assert prior_tasks._passed(problem, [f"    {ending}\n"]) == {"pass_at_1": 0.0}


@pytest.mark.parametrize(("last", "right"), [("pass", True), ("import time; time.sleep(60)", False)])
def test_what_a_program_started_ends_with_it(last: str, right: bool, tmp_path: Path) -> None:
    program = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
{last}
"""
    assert code.passes(program, seconds=3.0) == right
    state = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    until(lambda: not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z", seconds=5)


def test_a_program_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", "1")
    assert code.passes("import os; open('x', 'w').write('1'); assert 'SECRET' not in os.environ")
    assert not list(tmp_path.glob("x"))


def test_the_mean_weighs_benchmarks_equally() -> None:
    few, many = Score([0.0, 1.0]), Score([1.0] * 75 + [0.0] * 25)
    average, error = prior_tasks.mean([few, many])
    assert average == pytest.approx(0.625)
    assert error == pytest.approx((0.5**2 + 0.75 * 0.25 / 99) ** 0.5 / 2)  # standard errors 0.5 and 0.0435


def test_a_text_of_ones_own_is_scored_by_the_byte(tmp_path: Path) -> None:
    """Against the model's own loss, the end-of-text token standing before the first one."""
    language, texts = open_model(small_model(tmp_path / "model")), ["A short text.", "Zwölf Boxkämpfer jagen Viktor."]
    (tmp_path / "text").mkdir()
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "text" / "mine.jsonl").write_text(lines)
    score = prior_tasks.evaluate(language, "text", tmp_path, examples=0, batch_size=2, folder=tmp_path / "rows")
    for text, value in zip(texts, score.values, strict=True):
        ids = torch.tensor([[language.tokenizer.eos_token_id, *language.tokenizer(text)["input_ids"]]])
        loss = language.model(input_ids=ids, labels=ids).loss
        assert value == pytest.approx(math.exp(-loss.item() * (ids.shape[1] - 1) / len(text.encode())), rel=1e-4)
    (tmp_path / "text" / "mine.jsonl").write_text(lines + '{"txt": "A"}\n')
    with pytest.raises(UserError, match=r"mine.jsonl, line 3: no field 'text'"):
        prior_tasks.evaluate(language, "text", tmp_path, examples=0, batch_size=2, folder=tmp_path / "rows")
    with pytest.raises(UserError, match=r"expected documents there"):
        prior_tasks.evaluate(language, "text", tmp_path / "rows", examples=0, batch_size=2, folder=tmp_path / "rows")


@pytest.mark.slow
def test_a_model_is_evaluated_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = small_model(tmp_path / "model"), small_data(tmp_path / "rows")
    (rows / "humaneval").symlink_to(data / "humaneval")

    def summary(out: str, *words: str) -> dict[str, Any]:
        given = [f"model={model}", f"data_dir={rows}", "max_new_tokens=4", "examples=2", "dtype=float32", "device=cpu"]
        arguments = ["llm", "eval", *given, f"out={tmp_path / out}", "eval_prompts=3", "logger=none", *words]
        result = CliRunner().invoke(cli.app, arguments)
        assert result.exit_code == 0, result.output + str(result.exception)
        return json.loads((tmp_path / out / "summary.json").read_text())

    first = summary("one", "prior_tasks=[winogrande,humaneval]", "run_code=true")
    assert first["prior_tasks"]["winogrande"]["examples"] == 2 and first["new_task"]["examples"] == 3
    assert first["prior_tasks"]["humaneval"]["score"] == 0
    monkeypatch.setattr(prior_tasks, "evaluate", lambda *_, **__: pytest.fail("asked again"))
    assert summary("two", "prior_tasks=[winogrande]")["prior_tasks"]["winogrande"] == first["prior_tasks"]["winogrande"]
    file = rows / "winogrande" / "winogrande.jsonl"
    file.write_text(file.read_text().replace("it is.", "it was."))
    with pytest.raises(pytest.fail.Exception, match="asked again"):
        summary("three", "prior_tasks=[winogrande]")
    file.write_text(file.read_text().replace("it was.", "it is."))
    summary("four", "prior_tasks=[winogrande]")
    monkeypatch.setattr(llm_eval, "version", lambda _: "0.0")
    with pytest.raises(pytest.fail.Exception, match="asked again"):
        summary("five", "prior_tasks=[winogrande]")


def test_the_version_of_a_benchmarks_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local files by their content, the Hub's by their revision, and by none where it cannot be asked."""
    (tmp_path / "mmlu" / "test").mkdir(parents=True)
    file = tmp_path / "mmlu" / "test" / "anatomy_test.csv"
    versions = []
    for text in ("one", "two", "one"):
        file.write_text(text)
        versions.append(prior_tasks.data_version("mmlu", tmp_path))
    assert versions[0] == versions[2] != versions[1]
    (tmp_path / "cache" / "humaneval").mkdir(parents=True)
    for text in (b"one", b"two"):
        (tmp_path / "cache" / "humaneval" / humaneval.FILE).write_bytes(text)
        versions.append(prior_tasks.data_version("humaneval", None))
    assert None not in versions and versions[3] != versions[4]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert prior_tasks.data_version("mmlu", None) is None
    revision = SimpleNamespace(sha="a" * 40)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda _, name: {"cais/mmlu": revision}[name])
    assert prior_tasks.data_version("mmlu", None) == "a" * 40


def test_the_data_sets_are_those_that_lm_eval_asks_for() -> None:
    for benchmark in BENCHMARKS.values():
        if benchmark.file:
            file = prior_tasks._package() / "tasks" / benchmark.file.format("anatomy")
            texts = [path.read_text() for path in file.parent.iterdir() if path.is_file()]
            assert any(f"dataset_path: {benchmark.hub}\n" in text for text in texts)


def test_bad_input_is_one_message(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["llm", "eval", f"out={tmp_path / 'run'}", "prior_tasks=[helaswag]"])
    assert result.exit_code == 2 and "Did you mean hellaswag" in result.stderr and not (tmp_path / "run").exists()


@pytest.mark.parametrize("experiment", ["paper_llm", "paper_llm_7b", "paper_llm_14b"])
def test_the_papers_six_benchmarks(experiment: str, tmp_path: Path) -> None:
    """Section 3.1: HellaSwag, TruthfulQA, MMLU, IFEval, Winogrande and HumanEval, which has to be allowed."""
    (tmp_path / "humaneval").mkdir()
    (tmp_path / "humaneval" / humaneval.FILE).write_bytes(b"")
    for verb, words in (("llm_eval", ["run_code=true"]), ("llm_sweep", ["llm_eval.run_code=true"])):
        config = compose(verb, [f"experiment={experiment}", *words])
        names, skipped = llm_eval.available(config.get("llm_eval", config), str(tmp_path))
        assert {*names, *skipped} == {"hellaswag", "truthfulqa", "mmlu", "ifeval", "winogrande", "humaneval"}
        assert "humaneval" in names
        config = compose(verb, [f"experiment={experiment}"])
        _, skipped = llm_eval.available(config.get("llm_eval", config), str(tmp_path))
        assert "say run_code=true" in skipped["humaneval"]


def test_a_benchmark_that_was_not_run_is_said_to_be_missing(capsys: pytest.CaptureFixture[str]) -> None:
    config, score = compose("llm_eval", ["model=some"]), Score([1.0, 0.0])
    summary = llm_eval.present(Console(), config, score, {"mmlu": score}, {"humaneval": "it runs programs"})
    printed = " ".join(capsys.readouterr().out.split())
    assert "humaneval │ not run" in printed and "mean of 1 of the 2 prior tasks" in printed
    assert "humaneval was not run: it runs programs" in printed and summary["skipped"] == {
        "humaneval": "it runs programs"
    }


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    language = open_model(small_model(tmp_path / "model"))
    for name in ("hellaswag", "mmlu", "humaneval"):
        with pytest.raises(UserError, match=f"{tmp_path}/nowhere/{name}"):
            prior_tasks.evaluate(
                language, name, tmp_path / "nowhere", examples=1, batch_size=1, folder=tmp_path / "rows" / name
            )


def test_ifeval_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(punkt, "is_available", lambda: False)
    assert "vla-razor assets punkt" in (prior_tasks.unavailable("ifeval", None) or "")
    assert prior_tasks.unavailable("mmlu", None) is None


def test_humaneval_comes_from_its_package_where_the_folder_lacks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLA_RAZOR_CACHE", str(tmp_path / "cache"))
    assert "vla-razor assets humaneval" in (prior_tasks.unavailable("humaneval", tmp_path) or "")
    result = CliRunner().invoke(cli.app, ["assets", "humaneval"])
    assert result.exit_code == 0, result.output
    assert prior_tasks.unavailable("humaneval", tmp_path) is None
    file = humaneval.problems_file(tmp_path)
    assert file and len(prior_tasks._problems(file)) == 164


def asked_of(questions: list[dict], folder: Path, language: Any) -> list[float]:
    """What a model earns for questions of the user's own."""
    (folder / "questions").mkdir(parents=True, exist_ok=True)
    (folder / "questions" / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    assert "own" in prior_tasks.known(folder)
    found = prior_tasks.evaluate(language, "own", folder, examples=0, batch_size=2, folder=folder / "lm_eval")
    return list(found.values)


def test_ones_own_choices_are_scored_in_the_models_chat_format(tmp_path: Path) -> None:
    """Against log-likelihoods that are computed here."""
    language = open_model(small_model(tmp_path / "model"))
    choices = ["A", "B", "C"]
    questions = [{"question": f"Which is {n}?", "choices": choices, "answer": n % 3} for n in range(9)]
    expected = []
    for row in questions:
        messages = [{"role": "user", "content": row["question"]}]
        prompt = list(language.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
        with torch.no_grad():
            said = language.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        likely = [float(said[language.tokenizer.encode(choice)[0]]) for choice in choices]
        expected.append(float(likely.index(max(likely)) == row["answer"]))
    assert asked_of(questions, tmp_path / "data", language) == expected and 0 < sum(expected) < 9


def test_ones_own_questions_are_answered_exactly(tmp_path: Path) -> None:
    """By a model that has learned one answer by heart."""
    language = open_model(small_model(tmp_path / "model"), learning=True)
    messages = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "Answer: AB"}]
    ids = torch.tensor([language.tokenizer.apply_chat_template(messages, return_dict=False)])
    optimizer = torch.optim.AdamW(language.model.parameters(), 1e-2)
    for _ in range(40):
        language.model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    answers = ["Answer: AB", "Answer: A", "Answer: AB, or another"]
    questions = [{"question": "Say it.", "answer": answer} for answer in answers]
    assert asked_of(questions, tmp_path / "data", language) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("questions", "says"),
    [
        ([], "all of them with choices or none"),
        ([{"question": "A?", "answer": "a"}, {"question": "B?", "answer": 0, "choices": ["a"]}], "or none"),
        ([{"question": "A?"}], "line 1: no field 'answer'"),
        ([{"question": "A?", "answer": 3}], "line 1: field 'answer' is 3"),
        ([{"question": "A?", "answer": 2, "choices": ["a", "b"]}], "line 1: answer 2 is the place of none"),
    ],
)
def test_questions_that_cannot_be_asked_are_named(questions: list[dict], says: str, tmp_path: Path) -> None:
    language: Any = SimpleNamespace(model=None, tokenizer=None)
    with pytest.raises(UserError, match=rf"own\.jsonl.*{says}"):
        asked_of(questions, tmp_path, language)
