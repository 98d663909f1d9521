"""The prior tasks: lm-eval's benchmarks, from the Hub or from local files (RL's Razor, Section 3.1).

Local files are turned into the rows of the Hub's data sets, and lm-eval's own task is told to read these, so that
prompts, metrics and few-shot examples stay lm-eval's. HumanEval runs what the model wrote (`code.py`), and only where
asked for. `text` is not a benchmark but a text of the user's, scored by lm-eval's rolling log-likelihood. Questions of
the user's own, put in the model's chat format, are a prior task for each file of `questions` in the folder.
"""

import csv
import gzip
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, cast

from datasets import Dataset

from vla_razor.errors import RunFailed, UserError
from vla_razor.llm import humaneval, punkt
from vla_razor.llm.code import passes
from vla_razor.llm.models import LanguageModel
from vla_razor.llm.rows import Row, from_lines
from vla_razor.statistics import standard_error

Splits = dict[str, list[dict[str, Any]]]


class Benchmark(NamedTuple):
    """A benchmark's `name` in lm-eval, the metric that counts, the file of its task below lm-eval's folder, its data
    set on the Hub, and a function that reads its local rows.
    """

    name: str
    metric: str
    file: str
    hub: str
    rows: Callable[[Path], Mapping[str, Splits]]
    """By part (MMLU has one for each subject, the others one), then by split."""


@dataclass(frozen=True)
class Score:
    """What each example earned, in an order that all models share. The score is their mean, with its standard error."""

    values: Sequence[float]

    @property
    def examples(self) -> int:
        return len(self.values)

    @property
    def score(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def standard_error(self) -> float:
        return standard_error(self.values)

    def entry(self) -> dict[str, Any]:
        """For summary.json."""
        return {name: getattr(self, name) for name in ("score", "standard_error", "examples")}


def _hellaswag(data_dir: Path) -> Mapping[str, Splits]:
    rows = from_lines(data_dir / "hellaswag" / "hellaswag.jsonl")
    fields = ("activity_label", "ctx_a", "ctx_b", "endings", "label")
    return {"": {"validation": [_picked(row, fields) for row in rows]}}


def _winogrande(data_dir: Path) -> Mapping[str, Splits]:
    """The file has two beginnings of a sentence and its end. They become the options for a blank at its start."""
    found = []
    for row in from_lines(data_dir / "winogrande" / "winogrande.jsonl"):
        first, second = row.get("context_options")
        sentence = f"_ {row.text('continuation')}"
        found.append({"sentence": sentence, "option1": first, "option2": second, "answer": str(row.get("gold") + 1)})
    return {"": {"validation": found}}


def _truthfulqa(data_dir: Path) -> Mapping[str, Splits]:
    rows = from_lines(data_dir / "truthfulqa" / "truthfulqa_mc.jsonl")
    return {"": {"validation": [_picked(row, ("question", "mc1_targets", "mc2_targets")) for row in rows]}}


def _mmlu(data_dir: Path) -> Mapping[str, Splits]:
    files = sorted((data_dir / "mmlu" / "test").glob("*_test.csv"))
    if not files:
        raise UserError(f"{data_dir / 'mmlu' / 'test'}: expected MMLU's subjects there, as *_test.csv.")
    found: dict[str, Splits] = {}
    for subject, split in product([file.name.removesuffix("_test.csv") for file in files], ("test", "dev")):
        path = data_dir / "mmlu" / split / f"{subject}_{split}.csv"
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = [Row(f"{path}, row {number}", row) for number, row in enumerate(csv.DictReader(file), 2)]
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from None
        found.setdefault(subject, {})[split] = [
            {
                "question": row.get("question"),
                "choices": [row.get(f"choice{number}") for number in range(4)],
                "answer": int(row.text("answer")),
            }
            for row in rows
        ]
    return found


def _ifeval(data_dir: Path) -> Mapping[str, Splits]:
    rows = from_lines(data_dir / "ifeval" / "input_data.jsonl")
    return {"": {"train": [_picked(row, ("key", "prompt", "instruction_id_list", "kwargs")) for row in rows]}}


def _humaneval(data_dir: Path | None) -> dict[str, Any]:
    """lm-eval's task with our own checker, since lm-eval's comes from the Hub and runs programs without limits."""
    file = humaneval.problems_file(data_dir)
    local = {"custom_dataset": lambda **_: {"test": Dataset.from_list(_problems(file))}} if file else {}
    return {
        "task": "local_humaneval",
        "dataset_path": BENCHMARKS["humaneval"].hub,
        **local,
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{canonical_solution}}",
        "process_results": _passed,
        "metric_list": [{"metric": "pass_at_1", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {
            "until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
            "max_gen_toks": 1024,
            "do_sample": False,
        },
        "num_fewshot": 0,
    }


def _passed(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    program = f"{doc['prompt']}{results[0]}\n{doc['test']}\ncheck({doc['entry_point']})\n"
    return {"pass_at_1": float(passes(program))}


def _text(data_dir: Path) -> dict[str, Any]:
    """lm-eval's task on the user's own documents. A document's score is the geometric mean of the probabilities that
    the model gives to its bytes. Like a share of right answers it lies between 0 and 1, and it does not depend on the
    tokenizer.
    """
    files = sorted((data_dir / "text").glob("*.jsonl"))
    rows = [{"text": row.text("text")} for file in files for row in from_lines(file)]
    if not rows:
        raise UserError(f'{data_dir / "text"}: expected documents there, as lines {{"text": ...}} of *.jsonl.')
    return {
        "task": "local_text",
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "output_type": "loglikelihood_rolling",
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "process_results": lambda doc, results: {"byte_probability": math.exp(results[0] / len(doc["text"].encode()))},
        "metric_list": [{"metric": "byte_probability", "aggregation": "mean", "higher_is_better": True}],
    }


def _questions(path: Path) -> dict[str, Any]:
    """lm-eval's task on a file of the user's own questions: lines of {"question": ..., "choices": [...], "answer": 0},
    right where that choice is the likeliest, or of {"question": ..., "answer": "..."}, right where the model writes
    that and nothing else.
    """
    rows = list(from_lines(path))
    with_choices = [row for row in rows if row.has("choices")]
    if not rows or len(with_choices) not in (0, len(rows)):
        raise UserError(f"{path}: expected questions, all of them with choices or none.")
    task = {
        "task": f"local_{path.stem}",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    if with_choices:
        docs = [_picked(row, ("question", "choices", "answer")) for row in rows]
        for row, doc in zip(rows, docs, strict=True):
            if doc["answer"] not in range(len(doc["choices"])):
                raise UserError(f"{row.where}: answer {doc['answer']!r} is the place of none of the choices, from 0.")
        task |= {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "answer"}
    else:
        docs = [{"question": row.text("question"), "answer": row.text("answer")} for row in rows]
        longest = max(len(doc["answer"].encode()) for doc in docs)  # a token has at least a byte
        task |= {
            "output_type": "generate_until",
            "doc_to_target": "{{answer}}",
            "process_results": lambda doc, results: {"acc": float(results[0].strip() == doc["answer"])},
            # Of the tokens one is for the end: what goes on is not the answer.
            "generation_kwargs": {"until": [], "max_gen_toks": longest + 1, "do_sample": False},
        }
    return task | {"custom_dataset": lambda **_: {"test": Dataset.from_list(docs)}}


def _problems(path: Path) -> list[dict[str, Any]]:
    try:
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}. Expected HumanEval as its authors publish it.") from None
    rows = [Row(f"{path}, line {number}", json.loads(line)) for number, line in enumerate(lines, 1)]
    return [_picked(row, ("prompt", "test", "entry_point", "canonical_solution")) for row in rows]


BENCHMARKS = {
    "hellaswag": Benchmark("hellaswag", "acc_norm", "hellaswag/hellaswag.yaml", "Rowan/hellaswag", _hellaswag),
    "truthfulqa": Benchmark(
        "truthfulqa_mc2", "acc", "truthfulqa/truthfulqa_mc2.yaml", "truthfulqa/truthful_qa", _truthfulqa
    ),
    "mmlu": Benchmark("mmlu", "acc", "mmlu/default/mmlu_{}.yaml", "cais/mmlu", _mmlu),
    "ifeval": Benchmark("ifeval", "prompt_level_strict_acc", "ifeval/ifeval.yaml", "google/IFEval", _ifeval),
    "winogrande": Benchmark("winogrande", "acc", "winogrande/default.yaml", "allenai/winogrande", _winogrande),
    "humaneval": Benchmark("humaneval", "pass_at_1", "", "openai/openai_humaneval", lambda _: {}),
    "text": Benchmark("text", "byte_probability", "", "", lambda _: {}),
}
QUESTIONS = Benchmark("questions", "acc", "", "", lambda _: {})


def known(data_dir: Path | None) -> list[str]:
    """The benchmarks, and the user's own questions."""
    files = (data_dir / "questions").glob("*.jsonl") if data_dir else ()
    return [*BENCHMARKS, *sorted(path.stem for path in files)]


def unavailable(name: str, data_dir: Path | None) -> str | None:
    """Why a benchmark cannot be run here, or None."""
    if name == "ifeval" and not punkt.is_available():
        return "NLTK's punkt_tab is absent: vla-razor assets punkt"
    if name == "humaneval" and data_dir and not humaneval.problems_file(data_dir):
        return f"its problems are not in {data_dir / 'humaneval'}: vla-razor assets humaneval"
    if name == "text" and data_dir is None:
        return "it is a text of your own: data_dir=DIR with text/*.jsonl"
    return None


def data_version(name: str, data_dir: Path | None) -> str | None:
    """Which version of a benchmark's data this is: a hash of the local files, or the revision of its data set on the
    Hub; None where the Hub cannot be asked.
    """
    file = humaneval.problems_file(data_dir) if name == "humaneval" else None
    if file or data_dir:
        folder = cast(Path, data_dir)
        place = file or (folder / name if name in BENCHMARKS else _file(folder, name))
        digest = hashlib.sha256()  # of a file, or of the files in a folder, with their names
        for path in sorted(path for path in (place, *place.rglob("*")) if path.is_file()):
            digest.update(f"{path.relative_to(place.parent)} {path.stat().st_size} ".encode())
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(BENCHMARKS[name].hub).sha
    except Exception:  # the Hub's client and the network each raise their own
        return None


def evaluate(
    language: LanguageModel,
    name: str,
    data_dir: Path | None,
    *,
    examples: int,
    batch_size: int,
    folder: Path,
    dtype: str = "float32",
) -> Score:
    """A model's score on at most `examples` examples (0 for all), over all parts of the benchmark together. Local rows
    are written below `folder`; products are computed in `dtype`.

    Raises UserError where local files are missing or malformed, RunFailed where the Hub cannot be reached.
    """
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    if reason := unavailable(name, data_dir):
        raise UserError(f"{name}: {reason}")
    benchmark = BENCHMARKS.get(name, QUESTIONS)
    if benchmark is QUESTIONS:
        parts: list[Any] = [_questions(_file(cast(Path, data_dir), name))]
    elif name == "humaneval":
        parts = [_humaneval(data_dir)]
    elif name == "text" and data_dir:
        parts = [_text(data_dir)]
    else:
        parts = list(_write(benchmark, data_dir, folder)) if data_dir else [benchmark.name]
    limit = math.ceil(examples / (57 if name == "mmlu" else 1)) or None  # of each part: MMLU has 57 subjects
    try:
        model: Any = HFLM
        found: Any = simple_evaluate(
            model=model(
                pretrained=language.model,
                tokenizer=language.tokenizer,
                batch_size=batch_size,
                mixed_precision_dtype=dtype if dtype != "float32" else None,
                softmax_dtype="float32",
            ),
            tasks=parts,
            task_manager=_manager(folder) if data_dir else TaskManager(),
            limit=limit,
            bootstrap_iters=0,  # standard errors and pooling are our own, from the samples
            log_samples=True,
            apply_chat_template=benchmark is QUESTIONS,
        )
    except ConnectionError as error:
        raise RunFailed(f"{benchmark.name} could not be loaded from the Hub: {error}. Give data_dir=DIR.") from error
    parts = [part for _, part in sorted(found["samples"].items())]
    samples = [sample for part in parts for sample in sorted(part, key=lambda sample: sample["doc_id"])]
    if not samples:
        raise RunFailed(f"{benchmark.name}: no example was evaluated.")
    return Score([float(sample[benchmark.metric]) for sample in samples])


def mean(scores: Sequence[Score]) -> tuple[float, float]:
    """The mean score of several benchmarks, each weighing the same, and its standard error."""
    count = len(scores)
    return sum(s.score for s in scores) / count, math.sqrt(sum(s.standard_error**2 for s in scores)) / count


def _file(data_dir: Path, name: str) -> Path:
    return data_dir / "questions" / f"{name}.jsonl"


def _write(benchmark: Benchmark, data_dir: Path, folder: Path) -> Iterator[str]:
    """Writes the local rows and, for each part, a task of lm-eval's that reads them; yields the tasks' names."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, splits in benchmark.rows(data_dir).items():
        task = f"local_{benchmark.name}" + (f"_{part}" if part else "")
        files = {}
        for split, rows in splits.items():
            files[split] = str(folder / f"{task}-{split}.jsonl")
            Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
        content = {
            "include": str(_package() / "tasks" / benchmark.file.format(part)),
            "task": task,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files},
            "training_split": None,  # some name one for few-shot examples, though they take none
        }
        (folder / f"{task}.yaml").write_text(json.dumps(content))  # JSON is YAML
        yield task


def _manager(folder: Path) -> Any:
    """A task manager that knows only the tasks in this folder: reading all of lm-eval's own takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False)


def _package() -> Path:
    spec = find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("lm-eval is not installed: pip install 'vla-razor[llm]'.")
    return Path(spec.submodule_search_locations[0])


def _picked(row: Row, fields: Sequence[str]) -> dict[str, Any]:
    return {name: row.get(name) for name in fields}
