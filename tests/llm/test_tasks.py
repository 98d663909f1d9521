"""The three tasks: gold answers earn their reward, wrong and hostile completions do not, splits are disjoint."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_razor.errors import UserError
from vla_razor.llm import tasks
from vla_razor.llm.tasks import math, science, tool

MEGABYTES = 5_000_000
CHOICE = json.dumps({"letter": "B", "text": "1674.800"})
EQUATION = json.dumps({"equation": "Na2CrO4(aq) + 2LiBr(aq) = Li2CrO4(aq) + 2NaBr(s)"})
GOLD_CALLS = json.dumps([["find", {"city": "Oslo", "page": 1, "tags": ["a", "b"], "sort": ""}], ["show", {"id": "7"}]])
MADE = """Action: find
Action Input: {"page": "1", "tags": ["A", "b"], "city": "oslo"}
Action: show
Action Input: {"id": 7}"""


@pytest.fixture(scope="module")
def data(shared: Path) -> Path:
    folder = shared / "data"
    if not (folder / "toolalpaca").is_dir():
        pytest.skip(f"the published data are absent: no folder {folder}")
    return folder


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize(("name", "train", "test"), [("math", 11_700, 500), ("science", 1_900, 450), ("tool", 120, 45)])
def test_every_gold_answer_earns_its_reward(data: Path, name: str, train: int, test: int, direct: bool) -> None:
    task = tasks.open_task(name)
    splits = task.load(data, direct=direct)
    assert len(splits.train) > train and len(splits.test) >= test
    everything = splits.train + splits.test
    assert all(task.rewards([e.answer for e in everything], [e.gold for e in everything]))
    assert not {e.group for e in splits.train} & {e.group for e in splits.test}


@pytest.mark.parametrize("name", ["math", "science", "tool"])
def test_a_neighbours_answer_rarely_earns_a_reward(data: Path, name: str) -> None:
    task = tasks.open_task(name)
    examples = task.load(data, direct=True).test[:40]
    earned = sum(task.rewards([e.answer for e in examples[1:]], [e.gold for e in examples[:-1]]))
    assert earned <= 0.4 * len(examples)


def test_math_test_questions_are_not_trained_on(data: Path) -> None:
    splits = math.load(data, direct=False)
    assert splits.left_out["in MATH-500"] == 500
    assert sum(splits.left_out.values()) + len(splits.train) == 7473 + 5000


@pytest.mark.parametrize(
    ("completion", "gold", "right"),
    [
        (r"so \boxed{\frac{1}{2}}", "0.5", True),
        (r"so \boxed{\dfrac12}", r"\frac{1}{2}", True),
        (r"\boxed{(3, \frac{\pi}{2})}", r"\left( 3, \frac{\pi}{2} \right)", True),
        (r"\boxed{x^2+2x+1}", "(x+1)^2", True),
        (r"\boxed{1,000}", "1000", True),
        (r"\boxed{\text{Monday}}", r"\text{Monday}", True),
        (r"\boxed{\boxed{7}}", "7", True),
        (r"first \boxed{7}, no: \boxed{8}", "8", True),
        (r"first \boxed{7}, no: \boxed{8}", "7", False),
        (r"\boxed{7 or 8}", "7", False),
        (r"\boxed{6, 7, 8}", "7", False),
        (r"\boxed{7", "7", False),
        (r"first \boxed{7}, then \boxed{8", "7", True),
        (r"\boxed{7} and \boxed{\boxed{8", "7", True),
        (r"\boxed{7 and \boxed{8}", "8", True),
        (r"} so \boxed{7} {", "7", True),
        (r"first \boxed{7}, no: \boxed{}", "7", False),
        (r"\boxed{}", "7", False),
        ("the answer is 7", "7", False),
        ("", "7", False),
        (r"\boxed{" * 100_000, "7", False),
        (r"\boxed{" + "{" * 400 + "}" * 401, "7", False),
        (r"\boxed{" + "(" * 900 + "}", "7", False),
        ("7" * MEGABYTES + r"\boxed{7}", "7", False),
        (r"\boxed{\frac{0}{0}}", "7", False),
    ],
)
def test_math_answers(completion: str, gold: str, right: bool) -> None:
    assert math.rewards([completion], [gold]) == [float(right)]


@pytest.mark.parametrize("closed", [True, False])
def test_a_chain_of_reasoning_is_ignored(closed: bool) -> None:
    """Its drafts are no answers, and without an end to it there is none."""
    letter = json.dumps({"letter": "B", "text": "lead"})
    cases = [
        (math, r"\boxed{7}", "7", r"Is it \boxed{8}?"),
        (math, "It is 7.", None, r"So \boxed{7}"),
        (science, "Answer: B", letter, "Answer: A, or rather not"),
        (
            tool,
            'Action: look\nAction Input: {"at": 1}',
            '[["look", {"at": 1}]]',
            'Action: run\nAction Input: {"at": 2}',
        ),
    ]
    for task, answer, gold, chain in cases:
        text = f"<think>\n{chain}\n</think>\n\n{answer}" if closed else f"<think>\n{chain}\n{answer}"
        assert task.rewards([text], [gold or "7"]) == [float(closed and gold is not None)]


def test_a_tower_of_powers_is_wrong_in_bounded_time() -> None:
    begin = time.monotonic()
    towers = [r"\boxed{9^{9^{9^{9}}}}", r"\boxed{" + "9^{" * 30 + "9" + "}" * 30 + "}", r"\boxed{(10^{10})!!}"]
    assert math.rewards([*towers, r"\boxed{7}"], ["7"] * 4) == [0, 0, 0, 1]
    assert time.monotonic() - begin < 3 * math.SECONDS + 20


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("B", True),
        ("b.", True),
        ("(B)", True),
        ("**B**", True),
        ("B. 1674.800", True),
        ("It is heavy.\nAnswer: B", True),
        ("answer: A. No! Answer: B.", True),
        ("Answer: B\nAnswer: A", False),
        ("A", False),
        ("B or C", False),
        ("A, B, C, D", False),
        ("B. 1639.900", False),
        ("Because", False),
        ("B2", False),
        ("", False),
        ("Answer:", False),
        ("B" * MEGABYTES, False),
        ("Answer: " * 12_000 + "B", True),
        ("*" * 90_000 + "(" * 5_000, False),
    ],
)
def test_choices(completion: str, right: bool) -> None:
    assert science.rewards([completion], [CHOICE]) == [float(right)]


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("Na2CrO4(aq)+2LiBr(aq) = Li2CrO4(aq)+2NaBr(s)", True),
        ("Each side has two. Answer: Na2CrO4(aq) + 2LiBr(aq) -> Li2CrO4(aq) + 2NaBr(s)", True),
        ("Answer: `Na2CrO4(aq) + 2 LiBr(aq) → Li2CrO4(aq) + 2 NaBr(s)`", True),
        ("Na2CrO4(aq) + LiBr(aq) = Li2CrO4(aq) + NaBr(s)", False),
        ("2LiBr(aq) + Na2CrO4(aq) = Li2CrO4(aq) + 2NaBr(s)", False),
        ("NA2CRO4(AQ) + 2LIBR(AQ) = LI2CRO4(AQ) + 2NABR(S)", False),
        ("", False),
    ],
)
def test_equations(completion: str, right: bool) -> None:
    assert science.rewards([completion], [EQUATION]) == [float(right)]


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        (MADE, True),
        ("Thought: I look first.\n" + MADE.replace("\nAction: show", "\n\nThen:\nAction: show"), True),
        (MADE.replace("show", "Show"), False),
        (MADE.replace("oslo", "Bergen"), False),
        (MADE.replace('"page": "1", ', ""), False),
        (MADE.replace('"page": "1"', '"page": "1", "size": 3'), False),
        (MADE.replace('"a", "b"', '"b", "a"').replace('"A", "b"', '"b", "A"'), False),
        (MADE + '\nAction: show\nAction Input: {"id": 7}', False),
        ("\n".join(MADE.split("\n")[2:] + MADE.split("\n")[:2]), False),
        (MADE.replace('{"id": 7}', '{"id": 7'), False),
        (MADE.replace('{"id": 7}', "[7]"), False),
        (MADE.replace('{"id": 7}', '{"id": ' + "9" * 5000 + "}"), False),
        (MADE.replace('{"id": 7}', '{"id": NaN}'), False),
        (MADE.replace('{"id": 7}', '{"id": ' + "[" * 40_000), False),
        (MADE.replace('{"id": 7}', '{"id": ' + "[" * 800 + "]" * 800 + "}"), False),
        ("Action: " * 12_000, False),
        ("Action:" + " \t" * 40_000 + "x", False),
        ("Action: a\n" * 9_000, False),
        ("x" * MEGABYTES + "\n" + MADE, False),
        ("", False),
    ],
)
def test_calls(completion: str, right: bool) -> None:
    begin = time.monotonic()
    assert tool.rewards([completion], [GOLD_CALLS]) == [float(right)]
    assert time.monotonic() - begin < 2


@given(st.text(max_size=300))
def test_any_text_has_a_reward(text: str) -> None:
    assert science.rewards([text, f"Answer: {text}"], [CHOICE, EQUATION]) in ([0, 0], [1, 0])
    assert tool.rewards([text, f"Action: find\nAction Input: {text}"], [GOLD_CALLS] * 2) == [0, 0]
    math.final_answer("\\boxed{" + text)


def test_held_out_groups_are_the_stated_share() -> None:
    share = sum(tasks.is_held_out(str(n), 0.2) for n in range(5000)) / 5000
    assert abs(share - 0.2) < 0.02
    assert not tasks.is_held_out("x", 0) and tasks.is_held_out("x", 1)


def test_apis_are_the_training_files_where_it_is_there(tmp_path: Path) -> None:
    step = [["look", '{"q": 1}', "log"], "seen"]
    instances = [{"input": "Look.", "intermediate_steps": [step]}, {"input": "Wait.", "intermediate_steps": []}]
    api = {"NLDocumentation": "look: looks.", "Name": "Trained", "Instances": instances}
    evaluated = {
        "NLDocumentation": "see: sees.",
        "Name": "Held",
        "Instructions": ["See."],
        "Golden_Answers": [[{"Action": "see", "Action_Input": '{"it": ${it}}'}]],
    }
    folder = tmp_path / "toolalpaca"
    folder.mkdir()
    (folder / "eval_simulated.json").write_text(json.dumps([evaluated]))
    (folder / "eval_real.json").write_text("[]")
    (folder / "train_data.json").write_text(json.dumps([api, {**api, "Name": "Held"}]))
    splits = tool.load(tmp_path, direct=True)
    assert [example.answer for example in splits.train] == ['Action: look\nAction Input: {"q": 1}']
    assert splits.test == [] and splits.left_out == {"with calls that are no JSON": 2}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"question": "x"', "line 2: not JSON"),
        ("[]", "line 2: expected an object, found list"),
        ('{"question": "x"}', "line 2: no field 'type'"),
        ('{"question": "  ", "type": "filling"}', "line 2: field 'question' is '  '"),
        ('{"question": "x", "type": "essay"}', "line 2: type 'essay'"),
        (
            '{"question": "x", "type": "mcq", "answerKey": "E", "choices": {"label": ["A", "B"], "text": ["1", "2"]}}',
            "line 2: answerKey 'E' is none of A, B",
        ),
        (
            '{"question": "x", "type": "mcq", "answerKey": "A", "choices": {"label": ["A", "B"], "text": ["1"]}}',
            "line 2: expected as many choices.label",
        ),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, content: str, says: str) -> None:
    folder = tmp_path / "sciknoweval_chemistry_l3"
    folder.mkdir()
    right = json.dumps({"question": "q", "type": "filling", "answer": "H2 = H2"})
    (folder / "some.jsonl").write_text(f"{right}\n{content}\n")
    with pytest.raises(UserError, match=says.replace("[", r"\[")):
        science.load(tmp_path, direct=False)


@pytest.mark.parametrize("name", ["math", "science", "tool"])
def test_missing_files_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        tasks.open_task(name).load(tmp_path, direct=False)


def test_an_unknown_task_names_the_near_one() -> None:
    with pytest.raises(UserError, match="Did you mean math"):
        tasks.open_task("maths")


def test_the_easy_slice_is_one_call_with_the_words_of_its_tool(tmp_path: Path) -> None:
    documentation = 'look: Looks.\nParameters: {"at": "string."}\nOutput: what is seen.\nlift: Lifts.\nParameters: {}'
    look, lift = ({"Action": name, "Action_Input": text} for name, text in (("look", '{"at": "me"}'), ("lift", "{}")))
    api = {
        "Name": "Eyes",
        "NLDocumentation": documentation,
        "Instructions": ["Look at me.", "Look and lift.", "Lift what was found.", "Lift."],
        "Golden_Answers": [[look], [look, lift], [{**lift, "Action_Input": "the result"}], [lift]],
    }
    (tmp_path / "toolalpaca").mkdir()
    (tmp_path / "toolalpaca" / "eval_simulated.json").write_text(json.dumps([api]))
    (tmp_path / "toolalpaca" / "eval_real.json").write_text("[]")
    train, test, left_out = tool.load(tmp_path, direct=True, easy=True)
    assert [example.prompt.split("\n\n")[:2] for example in train] == [
        ['look: Looks.\nParameters: {"at": "string."}', "Request: Look at me."],
        ["lift: Lifts.\nParameters: {}", "Request: Lift."],
    ]
    assert tool.rewards([example.answer for example in train], [example.gold for example in train]) == [1, 1]
    assert not test and left_out == {"with calls that are no JSON": 1, tool.NOT_EASY: 1}


def test_the_easy_slice_of_the_real_files(shared: Path) -> None:
    train, test, _ = tool.load(shared / "data", direct=True, easy=True)
    assert (len(train), len(test)) == (77, 29)
    assert not {example.group for example in train} & {example.group for example in test}
    for example in (*train, *test):
        assert tool.rewards([example.answer], [example.gold]) == [1]
        assert example.prompt.startswith(f"{json.loads(example.gold)[0][0]}: "), "its own tool's words"
