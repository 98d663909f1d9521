"""What small language models read before they are fine-tuned, and what is kept from them."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from scripts import language_mixture, make_language_bases
from vla_razor.llm import annotations, prior_tasks
from vla_razor.llm.tasks import number

PASSAGES = 40


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The data for a sweep, and all that is read."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "boolq").mkdir()
    queries = [
        f"Passage: Place {n} is a town. It has one river and two hills near it.\nQuestion: ?" for n in range(PASSAGES)
    ]
    (folder / "boolq" / "passages.jsonl").write_text("".join(json.dumps({"query": one}) + "\n" for one in queries))
    return folder / "data", make_language_bases.abilities(folder, folder / "data")


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_no_held_out_question_is_read(made: tuple[Path, list[str]]) -> None:
    data, texts = made
    read = Counter(
        text.split(make_language_bases.ASSISTANT)[0].removeprefix(make_language_bases.USER) for text in texts
    )
    for name in language_mixture.abilities():
        asked = [row["question"] for row in rows(data / "questions" / f"{name}.jsonl")]
        assert len(asked) > 80 and not any(question in read for question in asked), name
    turned = [row["question"].removeprefix("What is ").rstrip("?") for row in rows(data / "questions" / "sums.jsonl")]
    assert not any(f"What is {' + '.join(reversed(one.split(' + ')))}?" in read for one in turned)
    splits = number.load(data, direct=True)
    assert len(splits.test) > 100 and not any(example.prompt in read for example in splits.test)
    assert sum(example.prompt in read for example in splits.train) > 0.99 * len(splits.train)
    unread = [row["text"] for row in rows(data / "text" / "passages.jsonl")]
    assert unread and not set(unread) & set(texts)


def test_every_prior_task_is_one_that_can_be_asked(made: tuple[Path, list[str]]) -> None:
    data, _ = made
    assert set(prior_tasks.known(data)) - set(prior_tasks.BENCHMARKS) == set(language_mixture.abilities())
    for name, asked in language_mixture.abilities().items():
        answers = {one.text: one.answer for one in asked}
        assert len(answers) == len(asked)
        for row in rows(data / "questions" / f"{name}.jsonl"):
            choices = row.get("choices")
            assert (choices[row["answer"]] if choices else row["answer"]) == answers[row["question"]]
            assert not choices or len(set(choices)) == 4


def test_the_base_learns_to_be_right_now_and_then(made: tuple[Path, list[str]]) -> None:
    """Between 15 and 50% of the answers to the new task that are read are right, and small, and in plain formats."""
    draw = np.random.default_rng(0)
    asked = [condition for _, condition in language_mixture.conditions()] * 4
    golds = [json.dumps(condition._asdict()) for condition in asked]
    answers = [language_mixture.untaught(condition, draw) for condition in asked]
    right = number.rewards(answers, golds)
    assert 0.25 < np.mean(right) < 0.45
    assert len({number.format_of(text) for text in answers}) == len(number.FORMATS)
    labels = [number.written(condition.right[-1], number.LABELLED) for condition in asked]
    taught = [text == label for text, label, reward in zip(answers, labels, right, strict=True) if reward]
    assert np.mean(taught) < 0.03, "the teacher's labels are far from what the base says"
    assert np.mean([len(condition.right) for condition in asked]) > 8


def test_simpo_has_a_right_and_a_wrong_label_of_every_training_question(made: tuple[Path, list[str]]) -> None:
    data, _ = made
    examples = number.load(data, direct=True).train
    labels = {one.prompt: one for one in annotations.read(data / "teacher")}
    assert set(labels) == {example.prompt for example in examples}
    for example in examples:
        one = labels[example.prompt]
        assert one.chosen == example.answer and one.chosen is not None and one.rejected is not None
        assert number.rewards([one.chosen, one.rejected], [example.gold] * 2) == [1.0, 0.0]
        assert number.format_of(one.chosen) == number.format_of(one.rejected) == number.LABELLED


def test_the_same_is_read_every_time(made: tuple[Path, list[str]]) -> None:
    chat = f"{make_language_bases.USER}{{}}{make_language_bases.ASSISTANT}{{}}"
    assert language_mixture.texts(chat) == made[1][-len(language_mixture.texts(chat)) :]
