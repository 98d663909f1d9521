"""What the tests of the language models share."""

from collections.abc import Iterator

import pytest

from vla_razor.llm import bounded, endpoint


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy between this machine and itself, no key of the user's, and short waits."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.005)


@pytest.fixture(scope="module", autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Other tests count this process's children."""
    yield
    bounded.close()
