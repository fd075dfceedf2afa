"""The page of ``healsg serve``: a self-contained HTML text, in light and dark mode."""

from __future__ import annotations

import base64
import hashlib
import html

STYLE = """
:root { color-scheme: light dark; --ink: #1c1d21; --soft: #5c616b; --paper: #fbfbfa; --card: #fff; --edge: #d8dade;
  --bar: #2f6fde; --track: #e9ebef; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e9ec; --soft: #a0a6b1; --paper: #17181b; --card: #202226;
  --edge: #3a3d44; --bar: #6ea2ff; --track: #2c2f35; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 44rem; margin: 0 auto; padding: 2rem 1rem; }
h1 { font-size: 1.35rem; margin: 0; overflow-wrap: anywhere; }
p { color: var(--soft); margin: .25rem 0 1.25rem; }
label { display: block; padding: 1.75rem 1rem; text-align: center; border: 2px dashed var(--edge); border-radius: 12px;
  background: var(--card); cursor: pointer; }
label.over, label:focus-within { border-color: var(--bar); }
input { position: absolute; width: 1px; height: 1px; opacity: 0; }
#stage { position: relative; width: fit-content; margin: 1.25rem auto 0; }
img { display: block; max-width: 100%; min-height: 6rem; max-height: 24rem; border-radius: 8px; }
#mask { position: absolute; inset: 0; width: 100%; height: 100%; image-rendering: pixelated; }
[hidden] { display: none !important; }
ol { list-style: none; margin: 1.25rem 0; padding: 0; }
li { display: grid; grid-template-columns: minmax(5rem, 30%) 1fr 4.5rem; gap: .75rem; align-items: center;
  padding: .3rem 0; }
li span:first-child { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
li.first { font-weight: 600; }
li span:last-child { text-align: right; font-variant-numeric: tabular-nums; }
div.track { height: .7rem; border-radius: 4px; background: var(--track); overflow: hidden; }
div.track div { height: 100%; background: var(--bar); border-radius: 4px; }
#saved { display: block; width: fit-content; max-width: 100%; margin: 1rem auto 0; color: var(--bar);
  overflow-wrap: anywhere; }
#busy { text-align: center; margin-top: 1.25rem; }
#error { color: var(--bad); min-height: 1.5rem; }
"""

SCRIPT = """
const drop = document.getElementById('drop'), file = document.getElementById('file');
const list = document.getElementById('classes'), error = document.getElementById('error');
const shown = document.getElementById('shown'), mask = document.getElementById('mask');
const saved = document.getElementById('saved'), busy = document.getElementById('busy');
const volumes = document.body.dataset.takes === 'volumes';
let asked = 0;

fetch('info').then(answer => answer.json()).then(info => {
  const count = info.classes.length;
  document.getElementById('about').textContent =
    `${info.kind}, ${count} ${info.kind === 'regression' ? 'numbers' : 'classes'}, ${info.checkpoint} weights`;
});

function row(name, value, first, share, colour) {
  const item = document.createElement('li'), label = document.createElement('span');
  const track = document.createElement('div'), bar = document.createElement('div');
  const number = document.createElement('span');
  item.className = first ? 'first' : '';
  label.textContent = name; label.title = name;
  track.className = 'track';
  bar.style.width = `${100 * share}%`;
  if (colour) bar.style.background = colour;
  if (share >= 0) track.append(bar);
  number.textContent = share >= 0 ? `${(100 * value).toFixed(1)} %` : Number(value.toPrecision(6));
  item.append(label, track, number);
  return item;
}

async function ask(picture) {
  const own = ++asked;
  error.textContent = ''; list.replaceChildren(); mask.hidden = true; saved.hidden = true;
  if (shown.src) URL.revokeObjectURL(shown.src);
  shown.hidden = volumes; busy.hidden = !volumes;
  if (!volumes) shown.src = URL.createObjectURL(picture);
  const form = new FormData();
  form.append('file', picture);
  let answer, found;
  try {
    answer = await fetch('predict', {method: 'POST', body: form});
    found = await answer.json();
  } catch { found = {error: 'healsg serve does not answer; is it still running?'}; }
  if (own !== asked) return;
  busy.hidden = true;
  if (found.error) { error.textContent = found.error; return; }
  if (found.overlay) { mask.src = `data:image/png;base64,${found.overlay}`; mask.hidden = false; }
  if (found.planes) { shown.src = `data:image/png;base64,${found.planes}`; shown.hidden = false; }
  if (found.file) {
    saved.href = found.mask; saved.download = found.file; saved.textContent = `Save ${found.file}`;
    saved.hidden = false;
  }
  const colours = found.colours || {}, shares = found.probabilities || found.shares;
  const pairs = Object.entries(shares || found.prediction);
  if (shares) pairs.sort((a, b) => b[1] - a[1]);
  list.replaceChildren(...pairs.slice(0, 20).map(([name, value], place) => {
    const colour = found.shares ? colours[name] || 'gray' : '';
    return row(name, value, found.probabilities && place === 0, shares ? value : -1, colour);
  }));
}

file.addEventListener('change', () => { if (file.files[0]) ask(file.files[0]); file.value = ''; });
shown.addEventListener('error', () => { shown.hidden = true; });
for (const kind of ['dragenter', 'dragover'])
  addEventListener(kind, event => { event.preventDefault(); drop.classList.add('over'); });
addEventListener('dragleave', event => { if (!event.relatedTarget) drop.classList.remove('over'); });
addEventListener('drop', event => {
  event.preventDefault(); drop.classList.remove('over');
  if (event.dataTransfer.files[0]) ask(event.dataTransfer.files[0]);
});
addEventListener('paste', event => { if (event.clipboardData.files[0]) ask(event.clipboardData.files[0]); });
"""


def _digest(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


POLICY = (
    f"default-src 'none'; style-src {_digest(STYLE)}; script-src {_digest(SCRIPT)}; connect-src 'self'; "
    "img-src blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The content security policy: its own style and script, requests to this server, the chosen image and its mask."""


def page(run: str, volumes: bool = False) -> str:
    """The page, as HTML.

    Args:
        run: the name of the run.
        volumes: whether it takes volumes instead of images.
    """
    name = html.escape(run)
    asked = "Drop a picture here, paste one, or choose a file"
    accept = "image/*"
    takes = "pictures"
    shown = "the picture that was chosen"
    if volumes:
        asked = "Drop a volume here (.nii, .nii.gz, .mha, .nrrd), or choose a file"
        accept = ".nii,.gz,.mha,.nrrd"
        takes = "volumes"
        shown = "three planes of the volume, and below them the same with the mask over them"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title>
<style>{STYLE}</style>
</head>
<body data-takes="{takes}">
<main>
<h1>{name}</h1>
<p id="about">&nbsp;</p>
<label id="drop">{asked}
<input id="file" type="file" accept="{accept}"></label>
<p id="busy" role="status" hidden>The mask is being predicted. A large volume takes minutes.</p>
<div id="stage"><img id="shown" alt="{shown}" hidden><img id="mask" alt="its mask" hidden></div>
<a id="saved" hidden></a>
<div id="error" role="alert"></div>
<ol id="classes" aria-live="polite" aria-label="classes and probabilities, or their shares of the {takes[:-1]}"></ol>
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""
