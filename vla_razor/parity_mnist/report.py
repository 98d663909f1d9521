"""The written report of a sweep: one HTML file that holds its figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment

from vla_razor import plots
from vla_razor.files import atomic_write
from vla_razor.parity_mnist import analysis, protocols

FIGURES = {
    "trade_off": "What each method learned and kept. Lines: exponentials through the models near each frontier.",
    "forgetting_against_kl": "Prior accuracy lost against forward KL on the new task, all methods together.",
    "accuracy_against_kl": "New-task accuracy against forward KL.",
    "quadrants": "On-policy or offline, with negative examples or without.",
    "predictors": "Prior accuracy lost against every predictor.",
    "widths": "SFT's trade-off for networks of different width.",
    "similarity": "How similar the last hidden layer stays to the base's while the new task is learned.",
    "updates": "Single updates: how much forward KL grows, and whether the update follows a task's loss uphill.",
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
<h2>Methods</h2>
<table><tr><th>method</th><th>models</th><th>best new-task accuracy</th>
<th>prior accuracy lost at {{ "%.0f" | format(100 * matched) }}% on the new task</th>
<th>forward KL there, nats</th></tr>
{% for name, m in methods.items() %}<tr><td>{{ name }}</td><td>{{ m.models }}</td>
<td>{{ "%.1f" | format(100 * m.best_new) }}%</td><td>{{ "%.1f" | format(100 * m.forgotten_at_match) }}%</td>
<td>{{ "%.2f" | format(m.forward_kl_at_match) }}</td></tr>
{% endfor %}</table>
{% if diverged %}<p>Diverged, and in no fit: {% for name, count in diverged.items() -%}
{{ "" if loop.first else ", " }}{{ count }} checkpoints of {{ name }}{% endfor %}.</p>{% endif %}
<h2>Other protocols</h2>
<p>R2 of the same fits where the sweep or the polynomial is another.</p>
<table><tr><th>protocol</th>{% for name in shown %}<th>{{ name }}</th>{% endfor %}<th>best</th></tr>
{% for protocol, r2 in protocols.items() %}<tr><td>{{ protocol }}</td>
{% for name in shown %}<td>{{ "%.2f" | format(r2[name]) if name in r2 }}</td>{% endfor %}
<td>{{ best(r2) }}, {{ "%.2f" | format(r2[best(r2)]) }}</td></tr>
{% endfor %}</table>
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
    parts = {
        "claims": analysis.claims(summary),
        "methods": summary["methods"],
        "matched": summary["matched_accuracy"],
        "diverged": summary["diverged"],
        "protocols": summary["protocols"],
        "shown": protocols.SHOWN,
        "best": protocols.best,
    }
    atomic_write(path, page.render(**parts, figures=pictures, settings=settings).encode())
