"""Writes docs/configuration.md from the definitions of the keys."""

from pathlib import Path

from vla_razor.config import manual

if __name__ == "__main__":
    (Path(__file__).parents[1] / "docs" / "configuration.md").write_text(manual.reference())
