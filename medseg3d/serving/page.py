"""The overview for people: one page with nothing to load, so that it works without the internet.

Its form works without scripts; with them, the image and its label map are shown in the viewer of the report.
"""

from __future__ import annotations

import importlib.resources
from functools import cache

from medseg3d.reporting.viewer_parts import viewer_script, viewer_style
from medseg3d.serving.answers import HealthAnswer, ModelAnswer
from medseg3d.serving.attached import taken
from medseg3d.serving.settings import ServeSettings

KINDS = {"nifti": "NIfTI", "dicom-seg": "DICOM SEG", "dicom-rtstruct": "RT structure set", "dicom-sr": "DICOM report of volumes"}
"""What may be asked for; DICOM of DICOM series only."""


def render_page(model: ModelAnswer, health: HealthAnswer, settings: ServeSettings) -> str:
    """The page as text; names of labels and channels are escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(PAGE).render(
        model=model,
        health=health,
        settings=settings,
        kinds=KINDS,
        taken=taken(),
        style=Markup(viewer_style()),
        script=Markup(overview_script()),
    )


@cache
def overview_script() -> str:
    """The viewer, and what sends the form."""
    own = importlib.resources.files("medseg3d.serving").joinpath("page.js").read_text(encoding="utf-8")
    return viewer_script() + "(() => {\n'use strict';\n" + own + "})();\n"


PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ model.dataset }} · medseg3d</title>
<style>
:root {
  color-scheme: light dark;
  --page: #f6f7f8; --card: #ffffff; --ink: #1a1f24; --soft: #5b6670; --rule: #e2e6ea; --accent: #0b6e7f; --on-accent: #ffffff;
  --warn: #8a5a00; --warn-tint: #fff5db; --tint: #e8f3f5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0e1114; --card: #161a1f; --ink: #e7eaed; --soft: #9aa5af; --rule: #2a3138; --accent: #4cc3d6; --on-accent: #0e1114;
    --warn: #f2c14e; --warn-tint: #2b2412; --tint: #12282d;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); overflow-wrap: anywhere;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 30px 24px 48px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.015em; }
h2 { font-size: 18px; margin: 0 0 8px; }
p { margin: 6px 0 10px; }
a { color: var(--accent); }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 16px 20px; margin: 18px 0; }
.soft { color: var(--soft); }
.warn { background: var(--warn-tint); color: var(--warn); border-radius: 8px; padding: 8px 14px; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 0 32px; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: 4px 10px 4px 0; border-bottom: 1px solid var(--rule); vertical-align: top; font-weight: normal; }
th { white-space: nowrap; }
thead th { color: var(--soft); font-size: 13px; }
.n { text-align: right; font-variant-numeric: tabular-nums; width: 4em; padding-right: 16px; }
code { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { margin: 8px 0 0; padding: 10px 14px; background: var(--page); border-radius: 8px; overflow-x: auto; }
form { display: flex; flex-wrap: wrap; gap: 10px 14px; align-items: center; }
form button { font: inherit; border: 0; border-radius: 8px; padding: 7px 18px; cursor: pointer;
  background: var(--accent); color: var(--on-accent); }
form button:disabled { opacity: .5; cursor: default; }
progress { width: 100%; accent-color: var(--accent); }
.job button { font: inherit; font-size: 13px; border: 1px solid var(--rule); border-radius: 7px; padding: 2px 10px;
  background: none; color: inherit; }
[hidden] { display: none; }
@media (max-width: 640px) { main { padding: 22px 14px; } .programs tr, .programs td { display: block; } .programs thead { display: none; }
  .programs td:first-child { border-bottom: 0; } }
select, input { font: inherit; color: inherit; max-width: 100%; }
{{ style }}
</style>
</head>
<body>
<main>
<h1>{{ model.dataset }}</h1>
<p class="soft">medseg3d {{ health.version }} · {{ health.device }} ·
{% if health.status == "stopping" %}the server is stopping{% else %}ready{% endif %} ·
{{ "one image is predicted" if health.is_predicting else "no image is predicted" }}, {{ health.queue_length }} waiting</p>
<p class="warn">Not a medical device: no clinical clearance. Look at every label map before you use it.</p>

<section>
<h2>Predict an image</h2>
<form action="predict" method="post" enctype="multipart/form-data">
<label>Image{% if model.channels|length > 1 %}s{% endif %} <input type="file" name="file" multiple required></label>
<label>then <select name="wait">
<option value="true">wait for the label map</option><option value="false">only queue it</option>
</select></label>
<label>as <select name="output">
{% for kind, name in kinds.items() %}<option value="{{ kind }}"{{ " selected" if settings.output_type[:1] == (kind,) }}>{{ name }}</option>
{% endfor %}</select></label>
<button>Predict</button>
</form>
<p class="soft">
{% if model.channels|length > 1 %}
One file per channel, in the order {{ model.channels|join(", ") }}, or called CASE_0000, CASE_0001, …; or one 4D file.
{% else %}
One volume ({{ model.channels[0] }}): {{ taken }}; or a .zip of one DICOM series.
{% endif %}
Up to {{ "%g"|format(settings.max_upload_mb) }} MiB. The label map has the grid of the image.</p>
<progress id="bar" hidden></progress>
<p id="said" class="soft" role="status"></p>
</section>

<section id="results" hidden>
<h2>Result</h2>
<div id="stage"></div>
<div id="jobs"></div>
<p class="soft">The image stays on the server as long as its label map: {{ "%g"|format(settings.keep_minutes) }} minutes, or until
you delete it.</p>
</section>

<section>
<h2>Model</h2>
<div class="columns">
<div>
<table>
<thead><tr><th class="n" scope="col">Value</th><th scope="col">Label</th></tr></thead>
<tbody>
{% for label in model.labels %}
<tr><td class="n">{{ label.value }}</td><td>{{ label.name }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
<div>
<table>
<tbody>
<tr><th class="soft" scope="row">Channels</th><td>{{ model.channels|join(", ") }}</td></tr>
<tr><th class="soft" scope="row">Training cases</th><td>{{ model.num_training_cases }}</td></tr>
{% for configuration in model.configurations %}
<tr><th class="soft" scope="row">Network</th><td>{{ configuration.name }}, {{ configuration.family }}, {{ configuration.num_folds }}
fold{{ "" if configuration.num_folds == 1 else "s" }}, {{ "with" if configuration.is_mirrored else "without" }} mirroring<br>
{% for edge in configuration.spacing_mm %}{{ "%.3g"|format(edge) }}{{ " × " if not loop.last }}{% endfor %} mm</td></tr>
{% endfor %}
<tr><th class="soft" scope="row">Identity</th><td><code>{{ model.identity }}</code></td></tr>
</tbody>
</table>
</div>
</div>
</section>

<section>
<h2>For programs</h2>
<table class="programs">
<thead><tr><th scope="col">Request</th><th scope="col">Answer</th></tr></thead>
<tbody>
<tr><td><code>POST /predict</code></td><td>the label map (.nii.gz); with <code>?wait=false</code> a job</td></tr>
<tr><td><code>GET /jobs/ID</code></td><td>state, place in the queue, seconds, warnings</td></tr>
<tr><td><code>GET /jobs/ID/labels</code></td><td>the label map, kept for {{ "%g"|format(settings.keep_minutes) }} minutes</td></tr>
<tr><td><code>GET /jobs/ID/view</code></td><td>for a viewer, of a job sent with <code>view=true</code>;
<code>…/view/AXIS/INDEX</code> is a slice</td></tr>
<tr><td><code>DELETE /jobs/ID</code></td><td>nothing; the job is forgotten</td></tr>
<tr><td><a href="model"><code>GET /model</code></a></td><td>labels, channels, configurations</td></tr>
<tr><td><a href="health"><code>GET /health</code></a></td><td>whether the server works{{ "; needs no token" if settings.token }}</td></tr>
<tr><td><a href="openapi.json"><code>GET /openapi.json</code></a></td><td>all of this for machines;
<a href="docs">/docs</a> shows it, where there is internet</td></tr>
</tbody>
</table>
<pre><code>curl -f {% if settings.token %}-H "Authorization: Bearer $TOKEN" {% endif %}
-F file=@scan.nii.gz http://HOST:{{ settings.port }}/predict -o labels.nii.gz</code></pre>
</section>
</main>
<script>{{ script }}</script>
</body>
</html>
"""
