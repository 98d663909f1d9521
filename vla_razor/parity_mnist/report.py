"""The written report of a sweep: one HTML file that holds its figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment

from vla_razor import plots
from vla_razor.files import atomic_write
from vla_razor.parity_mnist import analysis, dynamics, protocols

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
{% if teachers %}<h3>A teacher and the student nearest to it</h3>
<table><tr><th>base</th><th>policy</th><th>new-task accuracy</th><th>prior accuracy lost</th>
<th>forward KL, nats</th></tr>
{% for teacher in teachers %}{% for name, p in [("teacher", teacher), ("sft_distilled", teacher.student)] %}<tr>
<td>seed {{ teacher.seed }}</td><td>{{ name }}</td><td>{{ "%.1f" | format(100 * p.new) }}%</td>
<td>{{ "%.1f" | format(100 * p.forgotten) }}%</td><td>{{ "%.2f" | format(p.forward_kl) }}</td></tr>
{% endfor %}{% endfor %}</table>{% endif %}
<h2>Trained in float32 and in bfloat16</h2>
<p>The same base, images and draws; in bfloat16 weights, gradients and AdamW's averages are kept in it, and every
update is rounded to it. Means over three orders of the images. Jaccard: the weights that two such trainings both
changed, of those that either did; beside it what chance would give for as many changed weights in each tensor, and for
as many of each size.</p>
<table><tr><th>method</th><th>learning rate</th><th>precision</th><th>new-task accuracy</th><th>prior accuracy lost</th>
<th>forward KL, nats</th><th>weights unchanged</th><th>... rounded afterwards</th><th>Jaccard</th><th>by chance</th>
<th>... by size</th></tr>
{% for entry in precision %}{% for name in ("float32", "bfloat16") %}{% set p = entry[name] %}<tr>
<td>{{ entry.method }}</td><td>{{ "%g" | format(entry.learning_rate) }}</td><td>{{ name }}</td>
{% for key in ("new", "forgotten") %}<td>{{ "%.1f" | format(100 * p[key]) }}%</td>{% endfor %}
<td>{{ "%.3f" | format(p.forward_kl) }}</td>
{% for key in ("unchanged", "unchanged_rounded") %}<td>{{ "%.1f" | format(100 * p[key]) }}%</td>{% endfor %}
{% for key in ("jaccard", "chance", "chance_by_size") %}<td>{{ cell(p[key]) }}</td>{% endfor %}</tr>
{% endfor %}{% endfor %}</table>
<h2>Single updates</h2>
<p>The correlation, over the updates of one training, of how far the update moved the policy on the new task and
of its cosine with the gradient of a task's loss; 95% intervals by a bootstrap of blocks.</p>
<table><tr><th>method</th><th>gradient of</th><th></th><th>growth of forward KL</th>
<th>KL from the policy before it</th></tr>
{% for method, by_task in updates.items() %}{% for task, by_shift in by_task.items() %}{% for kind in coefficients %}
<tr><td>{{ method }}</td><td>the {{ task }} task</td><td>{{ kind | title }}</td>
{% for shift in shifts if shift in by_shift %}{% set c = by_shift[shift][kind] %}
<td>{{ "%+.2f [%+.2f, %+.2f]" | format(c.value, c.low, c.high) }}</td>{% endfor %}</tr>
{% endfor %}{% endfor %}{% endfor %}</table>
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
        "beyond": analysis.beyond(summary),
        "methods": summary["methods"],
        "teachers": summary["teachers"],
        "precision": summary["precision"],
        "updates": summary["updates"],
        "cell": analysis.cell,
        "shifts": dynamics.SHIFTS,
        "coefficients": list(dynamics.COEFFICIENTS),
        "matched": summary["matched_accuracy"],
        "diverged": summary["diverged"],
        "protocols": summary["protocols"],
        "shown": protocols.SHOWN,
        "best": protocols.best,
    }
    atomic_write(path, page.render(**parts, figures=pictures, settings=settings).encode())
