"""A map whose points show their picture and words under the mouse: one piece of HTML, without a server or a network.

In a notebook: `IPython.display.HTML(hover.page_map(points, thumbnails, words, kinds))`. N points.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from html import escape
from string import Template

import numpy as np

from bitgen.drawing import COLOURS
from bitgen.projector import SIDE, sprite

MOST = 2000  # points: more make the page heavy
WIDTH, HEIGHT, MARGIN = 640, 480, 14  # units of the drawing


def page_map(points: np.ndarray, thumbnails: Sequence[np.ndarray], words: Sequence[str], kinds: Sequence[str],
             title: str = "map of features") -> str:
    """Points (N, 2) with a thumbnail (3, S, S) uint8, words and a kind each; kinds have colours and a legend.

    Without scripts the words still show, as tooltips. Raises `ValueError` where numbers differ, for no points, more
    than 2000, more kinds than colours, and positions that are not finite.
    """
    points = np.asarray(points, dtype=float)
    names = list(dict.fromkeys(kinds))
    if not 0 < len(points) <= MOST or {len(thumbnails), len(words), len(kinds)} != {len(points)}:
        raise ValueError(f"page_map: expected 1 to {MOST} points and as many of each, got {len(points)} points, "
                         f"{len(thumbnails)} thumbnails, {len(words)} words, {len(kinds)} kinds")
    if len(names) > len(COLOURS) or not np.isfinite(points).all():
        raise ValueError(f"page_map: {len(names)} kinds (at most {len(COLOURS)}), or positions that are not finite")
    low = points.min(0)
    scale = np.array([WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN]) / np.maximum(points.max(0) - low, 1e-9)
    places = MARGIN + (points - low) * scale.min() + (scale - scale.min()) * (points.max(0) - low) / 2
    file = io.BytesIO()
    sprite(thumbnails).save(file, format="PNG", optimize=True)
    image = base64.b64encode(file.getvalue()).decode()
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{HEIGHT - y:.1f}" r="5" fill="{COLOURS[names.index(kind)]}" data-n="{n}">'
        f"<title>{escape(text)}</title></circle>" for n, ((x, y), text, kind) in enumerate(zip(places, words, kinds)))
    legend = "".join(f'<span><i style="background:{colour}"></i>{escape(name)}</span>'
                     for name, colour in zip(names, COLOURS))
    name = "map-" + hashlib.sha256((dots + image).encode()).hexdigest()[:10]
    across = int(np.ceil(np.sqrt(len(points))))
    return TEMPLATE.substitute(name=name, dots=dots, legend=legend, image=image, across=across, side=SIDE, width=WIDTH,
                               height=HEIGHT, title=escape(title))


TEMPLATE = Template("""<div id="$name" class="bitgen-map">
<style>
#$name { position: relative; max-width: ${width}px; font: 13px/1.4 system-ui, sans-serif; color: inherit; }
#$name svg { display: block; width: 100%; height: auto; border: 1px solid #8a8a8a55; border-radius: 6px; }
#$name circle { fill-opacity: .75; stroke: transparent; stroke-width: 6; cursor: pointer; }
#$name circle:hover { fill-opacity: 1; stroke: currentColor; stroke-width: 1.5; }
#$name .legend { display: flex; flex-wrap: wrap; gap: 2px 16px; padding: 6px 0; }
#$name i { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 5px; }
#$name .card { position: absolute; display: none; max-width: 230px; padding: 8px; border-radius: 6px;
  background: #fff; color: #222; border: 1px solid #8a8a8a; pointer-events: none; z-index: 2; }
#$name .thumb { width: 96px; height: 96px; image-rendering: pixelated; margin-bottom: 4px;
  background: url(data:image/png;base64,$image) 0 0 / ${across}00% ${across}00%; }
</style>
<b>$title</b>
<svg viewBox="0 0 $width $height" role="img" aria-label="$title">$dots</svg>
<div class="legend">$legend</div>
<div class="card"><div class="thumb"></div><div class="words"></div></div>
<script>
(() => {
  const root = document.getElementById("$name"), card = root.querySelector(".card"), last = Math.max($across - 1, 1);
  const texts = new Map([...root.querySelectorAll("circle")].map(c => [c, c.querySelector("title").textContent]));
  root.querySelectorAll("title").forEach(t => t.remove());
  root.querySelector("svg").addEventListener("pointerover", event => {
    const dot = event.target.closest("circle");
    if (!dot) { card.style.display = "none"; return; }
    const n = +dot.dataset.n, box = root.getBoundingClientRect(), at = dot.getBoundingClientRect();
    card.querySelector(".thumb").style.backgroundPosition =
      `$${n % $across / last * 100}% $${Math.floor(n / $across) / last * 100}%`;
    card.querySelector(".words").textContent = texts.get(dot);
    card.style.display = "block";
    card.style.left = Math.max(0, Math.min(at.left - box.left + 14, box.width - card.offsetWidth)) + "px";
    card.style.top = (at.top - box.top + 14) + "px";
  });
  root.addEventListener("pointerleave", () => { card.style.display = "none"; });
})();
</script></div>""")
