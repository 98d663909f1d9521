"""The task with many right answers: its reward, its labels, and the oracle, which is restricted to what earns one."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.llm.support import small_data, small_model
from vla_razor.errors import UserError
from vla_razor.llm import tasks
from vla_razor.llm.models import LanguageModel, open_model
from vla_razor.llm.oracle import Oracle, log_likelihoods
from vla_razor.llm.sampling import prompt_ids
from vla_razor.llm.tasks import Splits, number
from vla_razor.llm.tasks.number import Condition
from vla_razor.llm.teacher import Request

EVEN = json.dumps({"above": 30, "below": 40, "divisor": 2, "remainder": 0})


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return open_model(small_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    return tasks.open_task("number").load(small_data(tmp_path_factory.mktemp("data") / "rows"), direct=True)


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("32", True),
        (" 38\n", True),
        ("It is 34.", True),
        ("Answer: 36", True),
        (r"\boxed{38}", True),
        ("<think>30? No.</think>32", True),
        ("30", False),  # the bounds are exclusive
        ("40", False),
        ("33", False),
        ("It is 34", False),
        ("32 34", False),
        ("032", False),
        ("-32", False),
        ("٣٢", False),  # 32, in digits that are not the task's
        ("Any of them", False),
        ("", False),
        ("3" * 5_000_000, False),
    ],
)
def test_the_reward(completion: str, right: bool) -> None:
    assert number.rewards([completion], [EVEN]) == [float(right)]


def test_all_right_answers_are_listed_and_no_others() -> None:
    listed = number.solutions(EVEN)
    assert len(listed) == len(set(listed)) == 4 * len(number.FORMATS)
    every = [number.written(n, name) for n in range(100) for name in number.FORMATS]
    assert {text for text in every if number.rewards([text], [EVEN]) == [1.0]} == set(listed)


@pytest.mark.parametrize(("divisor", "remainder"), [(2, 0), (2, 1), (5, 0), (10, 7)])
def test_a_conditions_numbers_are_those_that_satisfy_it(divisor: int, remainder: int) -> None:
    condition = Condition(20, 50, divisor, remainder)
    assert list(condition.right) == [n for n in range(21, 50) if n % divisor == remainder]


def test_the_teachers_label_is_right_and_the_largest(splits: Splits) -> None:
    for example in splits.train + splits.test:
        assert example.answer in number.solutions(example.gold)
        assert example.answer == rf"\boxed{{{Condition(**json.loads(example.gold)).right[-1]}}}"


def test_no_condition_is_on_both_sides(splits: Splits) -> None:
    assert splits.train and splits.test
    assert not {one.group for one in splits.train} & {one.group for one in splits.test}
    assert all(Condition(**json.loads(one.gold)).is_tested for one in splits.test)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"above": 30, "below": 32, "divisor": 5, "remainder": 0}, "no number satisfies"),
        ({"above": 30, "below": 30, "divisor": 2, "remainder": 0}, "no number satisfies"),
        ({"above": 0, "below": 10**9, "divisor": 2, "remainder": 0}, "more than 1000"),
        ({"above": "30", "below": 40, "divisor": 2, "remainder": 0}, "whole numbers"),
        ({"above": 30, "below": 40, "divisor": 0, "remainder": 0}, "no number satisfies"),
        ({"above": 30}, "no field 'below'"),
    ],
)
def test_bad_questions_are_named(row: dict, says: str, tmp_path: Path) -> None:
    (tmp_path / "number").mkdir()
    (tmp_path / "number" / "questions.jsonl").write_text(json.dumps({"question": "?", **row}))
    with pytest.raises(UserError, match=f"questions.jsonl, line 1.*{says}"):
        number.load(tmp_path, direct=True)
    with pytest.raises(UserError, match=r"make_language_bases\.py"):
        number.load(None, direct=True)


def test_the_oracle_is_the_model_among_right_answers(language: LanguageModel, splits: Splits) -> None:
    """Against every sequence in a pass of its own, without what is kept of the prompt, and without others beside it."""
    example = splits.train[0]
    texts, probabilities = Oracle(language, number, [example], seed=0).distribution(example)
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-12)
    alone = []
    for text in texts:
        prompt, end = prompt_ids(language, example), language.tokenizer.eos_token_id
        said = [*language.tokenizer.encode(text), end]
        with torch.inference_mode():
            logits = language.model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
        alone.append(float(logits.double().log_softmax(-1)[range(len(said)), said].sum()))
    assert log_likelihoods(language, example, texts).tolist() == pytest.approx(alone, abs=1e-4)
    assert probabilities.tolist() == pytest.approx(torch.tensor(alone).softmax(0).tolist(), rel=1e-3)


def test_the_oracle_draws_right_answers_by_their_probabilities(language: LanguageModel, splits: Splits) -> None:
    examples = splits.train[:3]
    oracle = Oracle(language, number, examples, seed=0)
    for place, example in enumerate(examples):
        drawn = oracle.ask(Request(example.messages, place, 0, 2000)).result().responses
        assert all(number.rewards([one.text for one in drawn], [example.gold] * len(drawn)))
        texts, probabilities = oracle.distribution(example)
        shares = Counter(one.text for one in drawn)
        apart = sum(abs(shares[text] / 2000 - float(p)) for text, p in zip(texts, probabilities, strict=True))
        assert apart / 2 < 0.5 * (len(texts) / 2000) ** 0.5, "total variation, of which half the bound is expected"
        again = Oracle(language, number, examples, seed=0).ask(Request(example.messages, place, 0, 9)).result()
        other = Oracle(language, number, examples, seed=1).ask(Request(example.messages, place, 0, 9)).result()
        assert again.responses == drawn[:9] != other.responses


def test_the_entropy_of_formats() -> None:
    """Of the forms alone: neither the numbers nor whether they are right count."""
    tasks.open_task("math")  # whose module must not stand in for the library of that name
    assert str(tasks.format_entropy(number, ["32", "34", "7"])) == "0.0"
    two = ["32", "34", r"\boxed{32}", r"\boxed{7}"]
    assert tasks.format_entropy(number, two) == pytest.approx(math.log(2))
    assert tasks.format_entropy(number, [*two, "no", "?"]) == pytest.approx(math.log(3)), "no number is a form too"
