"""The store of annotations: what is written is read back, and every kind of damage is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.llm.teaching import RIGHT, WRONG
from vla_razor.errors import UserError
from vla_razor.llm import annotations
from vla_razor.llm.annotations import FILE, Annotation

MADE = Annotation("  a prompt ", '{"letter": "B"}', "aprompt", RIGHT, None, 2, "sage", {"timed_out": 1})


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    odd = MADE._replace(prompt="line\u2028line\nline", chosen=None, rejected="\t\ud800é", failures={})
    for annotation in (MADE, odd):
        annotations.append(tmp_path / FILE, annotation)
    assert annotations.read(tmp_path) == [MADE, odd]
    assert list(json.loads((tmp_path / FILE).read_text().splitlines()[0])) == [
        *("prompt", "gold", "group", "chosen", "rejected", "samples", "teacher", "failures"),
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"chosen": 3}, "line 2: field 'chosen' is 3"),
        ({"chosen": ""}, "line 2: field 'chosen' is ''"),
        ({"prompt": None}, "line 2: field 'prompt' is None"),
        ({"samples": -1}, "line 2: field 'samples' is -1"),
        ({"samples": True}, "line 2: field 'samples' is True"),
        ({"failures": [1]}, r"line 2: field 'failures' is \[1\]"),
        ({"failures": {"empty": "x"}}, "line 2: field 'failures.empty' is 'x'"),
        ({"prompt": MADE.prompt}, "line 2: the same prompt as in .*line 1"),
        ("[]\n", "line 2: expected an object, found list"),
        ('{"prompt": "x"}\n', "line 2: no field 'gold'"),
        ("\0\0\0\n", "line 2: not JSON"),
        ('{"prompt": "x', "the last line is cut off. Its run goes on with: vla-razor resume"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, change: dict[str, Any] | str, says: str) -> None:
    annotations.append(tmp_path / FILE, MADE)
    line = change
    if isinstance(change, dict):
        line = json.dumps(MADE._asdict() | {"prompt": "another"} | change) + "\n"
    with (tmp_path / FILE).open("a") as file:
        file.write(str(line))
    with pytest.raises(UserError, match=says) as error:
        annotations.read(tmp_path)
    assert str(tmp_path / FILE) in str(error.value)


def test_a_folder_without_annotations(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no annotations.jsonl: expected a folder that `vla-razor llm annotate`"):
        annotations.read(tmp_path)


def test_a_line_that_a_kill_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / FILE
    assert annotations.take_up(path, {}) == []
    annotations.append(path, MADE)
    whole = path.read_bytes()
    for length in range(1, len(whole)):
        path.write_bytes(whole + whole[:length])
        assert annotations.take_up(path, {MADE.prompt: MADE.gold}) == [MADE]
        assert path.read_bytes() == whole
    path.write_bytes(whole[:5])
    assert annotations.take_up(path, {}) == [] and path.read_bytes() == b""


@pytest.mark.parametrize("golds", [{}, {MADE.prompt: "another"}])
def test_annotations_of_other_data_are_refused(tmp_path: Path, golds: dict[str, str]) -> None:
    annotations.append(tmp_path / FILE, MADE)
    with pytest.raises(UserError, match="line 1: no training prompt of the task has this prompt and gold"):
        annotations.take_up(tmp_path / FILE, golds)


def test_coverage_by_hand() -> None:
    made = [
        MADE,
        MADE._replace(rejected=WRONG, samples=5, failures={"timed_out": 2, "empty": 4}),
        MADE._replace(chosen=None, rejected=WRONG, samples=16, failures={}),
    ]
    found = annotations.coverage(made, 4)
    assert found["covered"]["successes"] == 2 and found["covered"]["episodes"] == 4
    assert found["pairs"]["successes"] == 1 and found["samples"] == 23
    assert found["failures"] == {"empty": 4, "timed_out": 3}
    assert found["covered"]["low"] == pytest.approx(0.1500, abs=1e-4)  # Wilson's (p + z²/2n ∓ ...) of 2/4
