"""The written report of a sweep: one HTML file that holds its figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment

from vla_razor import plots
from vla_razor.files import atomic_write
from vla_razor.parity_mnist import analysis
from vla_razor.parity_mnist.tables import sheets

FIGURES = {
    "trade_off": "What each method learned and kept. Lines: exponentials through the models near each frontier.",
    "forgetting_against_kl": "Prior accuracy lost against forward KL on the new task, all methods together.",
    "accuracy_against_kl": "New-task accuracy against forward KL.",
    "kl_at_matched_accuracy": "The least forward KL of each method's models with at least so much new-task accuracy.",
    "quadrants": "On-policy or offline, with negative examples or without.",
    "predictors": "Prior accuracy lost against every predictor.",
    "widths": "SFT's trade-off for networks of different width.",
    "similarity": "How similar the last hidden layer stays to the base's while the new task is learned.",
    "updates": "Single updates: how much forward KL grows, and whether the update follows a task's loss uphill.",
    "precision": "The same trainings in float32 and in bfloat16, where small updates round away.",
}
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>ParityMNIST</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; border-bottom: 1px solid #ddd; }
figure { margin: 2rem 0; } svg { max-width: 100%; height: auto; } .no { color: #b00020; }
</style></head><body>
<h1>ParityMNIST: does forward KL predict forgetting?</h1>
<h2>The paper's claims</h2>
<table><tr><th>claim</th><th>paper</th><th>here</th><th>agrees</th></tr>
{% for claim in claims %}<tr><td>{{ claim.text }}</td><td>{{ claim.paper }}</td><td>{{ claim.ours }}</td>
<td{% if not claim.agrees %} class="no"{% endif %}>{{ "yes" if claim.agrees else "no" }}</td></tr>
{% endfor %}</table>
<h2>Beyond the paper's ParityMNIST</h2>
<p>It has no number of these on this experiment.</p>
<table>{% for text, ours in beyond %}<tr><td>{{ text }}</td><td>{{ ours }}</td></tr>
{% endfor %}</table>
{% for sheet in sheets %}<h2>{{ sheet.title }}</h2><p>{{ sheet.note }}</p>
<table><tr>{% for name in sheet.columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in sheet.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endfor %}
{% if diverged %}<p>Diverged, and in no fit: {% for name, count in diverged.items() -%}
{{ "" if loop.first else ", " }}{{ count }} checkpoints of {{ name }}{% endfor %}.</p>{% endif %}
<h2>Figures</h2>
{% for picture, caption in figures %}<figure>{{ picture | safe }}<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
<h2>Settings</h2>
<table>{% for key, value in settings.items() %}<tr><td>{{ key }}</td><td>{{ value }}</td></tr>
{% endfor %}</table>
</body></html>
"""


def write(path: Path, folder: Path, summary: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write the report; the figures that there are come from `folder`."""
    drawn = {name: folder / f"{name}.svg" for name in FIGURES if (folder / f"{name}.svg").is_file()}
    pictures = [(plots.inline_svg(picture, name), FIGURES[name]) for name, picture in drawn.items()]
    page = Environment(autoescape=True).from_string(PAGE)
    claims, beyond = analysis.claims(summary), analysis.beyond(summary)
    parts = {"claims": claims, "beyond": beyond, "sheets": sheets(summary), "diverged": summary["diverged"]}
    atomic_write(path, page.render(**parts, figures=pictures, settings=settings).encode())
