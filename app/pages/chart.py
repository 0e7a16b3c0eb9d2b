"""The map as a component: points to hover over, to click on and to draw around. Its style stands in `app/theme.py`.

Python sends `value` (`app.map.page`) and `paint` (`colours`); the page sends back the events `pick` with the index of a
point and `lasso` with the indices of several. Everything that comes from data becomes text here, never HTML.
"""

from __future__ import annotations

import gradio as gr

from app.map import Groups, Placed

HELP = ("Map of pictures and captions. Arrow keys move, plus and minus zoom, Enter searches with the point in the "
        "middle.")
TOOLS = (("in", "+", "Zoom in"), ("out", "−", "Zoom out"), ("all", "⤢", "Show everything"),
         ("lasso", "◌ Lasso", "Draw around points"))
BUTTONS = "".join(f'<button type="button" data-do="{do}" aria-label="{label}" title="{label}">{sign}</button>'
                  for do, sign, label in TOOLS)
PAGE = f"""<div class="map-frame"><svg tabindex="0" role="application" aria-label="{HELP}">
<path class="joins"></path><g class="dots"></g><g class="query"></g><path class="lasso"></path></svg>
<div class="map-tools">{BUTTONS}</div>
<div class="map-card"><div class="map-thumb"></div><div class="map-rank"></div><div class="map-words"></div></div></div>
<div class="map-legend"></div>"""

SCRIPT = r"""
const find = name => element.querySelector(name), svg = find("svg"), card = find(".map-card"), SVG = svg.namespaceURI;
const add = (tag, to, name) => { const made = document.createElementNS(SVG, tag); made.setAttribute("class", name);
                                 return to.appendChild(made); };
let scene = null, dots = [], at = [], box = null, whole = null, drag = null, lassoing = false, shown = -1;

function build() {                                                    // new points
  scene = props.value; hide();
  find(".dots").replaceChildren(); dots = []; at = [];
  if (!scene) return;
  at = scene.points.map(([x, y]) => [1000 * x, 1000 * (1 - y)]);
  find(".joins").setAttribute("d", scene.owner.map((image, i) =>
    `M${at[image]}L${at[scene.pictures + i]}`).join(""));
  dots = at.map((point, n) => { const dot = add("path", find(".dots"), ""); dot.setAttribute("d", `M${point}h.01`);
                                return dot; });
  const size = axis => [Math.min(...at.map(p => p[axis])), Math.max(...at.map(p => p[axis]))];
  const [left, right] = size(0), [top, bottom] = size(1), edge = 30;
  whole = [left - edge, top - edge, right - left + 2 * edge, bottom - top + 2 * edge];
  view(whole); colour();
}

function colour() {                                                   // new groups, another query
  const paint = props.paint;
  if (!paint || !scene) return;
  dots.forEach((dot, n) => dot.setAttribute("class", (n < scene.pictures ? "dot" : "dot said") + " g" + paint.members[n]
                                                     + (paint.chosen && !paint.chosen.includes(n) ? " out" : "")));
  find(".query").replaceChildren();
  if (paint.query) for (const part of ["halo", "heart"])
    add("path", find(".query"), part).setAttribute("d", `M${1000 * paint.query[0]} ${1000 * (1 - paint.query[1])}h.01`);
  find(".map-legend").replaceChildren(...[...paint.legend, ...(paint.query ? [["q", "your last query"]] : [])].map(
    ([group, name]) => { const entry = document.createElement("span"), spot = document.createElement("i");
                         spot.className = "g" + group; entry.append(spot, name); return entry; }));
}

function view(next) { box = next; svg.setAttribute("viewBox", next.map(x => x.toFixed(2)).join(" ")); }
const inside = event => new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
const middle = () => { const b = svg.getBoundingClientRect();
                       return {clientX: b.left + b.width / 2, clientY: b.top + b.height / 2}; };

function zoom(factor, event = middle()) {
  const [x, y, w, h] = box, wide = Math.min(Math.max(w * factor, whole[2] / 200), whole[2] * 2), share = wide / w;
  const p = inside(event);
  view([p.x - (p.x - x) * share, p.y - (p.y - y) * share, wide, h * share]); hide();
}

function nearest(event, reach) {
  const m = svg.getScreenCTM(); let best = -1, least = reach * reach;
  at.forEach(([x, y], n) => {
    const far = (m.a * x + m.e - event.clientX) ** 2 + (m.d * y + m.f - event.clientY) ** 2;
    if (far < least) { least = far; best = n; }
  });
  return best;
}

function show(n) {
  if (n < 0) return hide();
  if (shown >= 0) dots[shown].classList.remove("on");
  shown = n; dots[n].classList.add("on");
  const image = n < scene.pictures ? n : scene.owner[n - scene.pictures], rank = scene.ranks[n];
  const across = Math.ceil(Math.sqrt(scene.pictures)), last = Math.max(across - 1, 1);
  const thumb = find(".map-thumb").style;
  thumb.backgroundImage = `url(${scene.sheet})`; thumb.backgroundSize = `${100 * across}%`;
  thumb.backgroundPosition = `${image % across / last * 100}% ${Math.floor(image / across) / last * 100}%`;
  find(".map-rank").textContent = (n < scene.pictures ? "Picture" : "Caption") + (rank === null ? "" :
    n < scene.pictures ? `, finds its caption at rank ${rank}` : `, finds its picture at rank ${rank}`);
  find(".map-words").textContent = scene.texts[n];
  card.classList.add("on");
  const m = svg.getScreenCTM(), frame = find(".map-frame").getBoundingClientRect();
  const x = m.a * at[n][0] + m.e - frame.left, y = m.d * at[n][1] + m.f - frame.top;
  const w = card.offsetWidth, h = card.offsetHeight;
  card.style.left = Math.max(4, x + 14 + w > frame.width ? x - 14 - w : x + 14) + "px";
  card.style.top = Math.max(4, Math.min(y - h / 2, frame.height - h - 4)) + "px";
}

function hide() {
  if (shown >= 0 && dots[shown]) dots[shown].classList.remove("on");
  shown = -1; card.classList.remove("on");
}

function pick(n) { if (n >= 0) { hide(); trigger("pick", {index: n}); } }

function tool(name) {
  if (!scene) return;
  if (name === "in") zoom(0.6);
  if (name === "out") zoom(1 / 0.6);
  if (name === "all") view(whole);
  if (name === "lasso") {
    lassoing = !lassoing; element.classList.toggle("lassoing", lassoing);
    find("[data-do=lasso]").setAttribute("aria-pressed", lassoing);
  }
}

element.querySelectorAll(".map-tools button").forEach(button =>
  button.addEventListener("click", () => tool(button.dataset.do)));
svg.addEventListener("wheel", event => {
  if (!scene || !event.ctrlKey && !event.metaKey) return;              // without, the page scrolls
  event.preventDefault(); zoom(event.deltaY > 0 ? 1.15 : 1 / 1.15, event);
}, {passive: false});
svg.addEventListener("dblclick", event => { if (scene && nearest(event, 12) < 0) zoom(0.5, event); });
svg.addEventListener("pointerleave", () => { if (!drag) hide(); });
svg.addEventListener("pointerdown", event => {
  if (!scene) return;
  drag = {from: event, box, moved: false, was: shown, path: lassoing ? [inside(event)] : null};
  if (event.isTrusted) svg.setPointerCapture(event.pointerId);
});
svg.addEventListener("pointermove", event => {
  if (!scene) return;
  if (!drag) return show(nearest(event, 14));
  const dx = event.clientX - drag.from.clientX, dy = event.clientY - drag.from.clientY;
  if (Math.hypot(dx, dy) > 4) drag.moved = true;
  if (drag.path) {
    drag.path.push(inside(event));
    find(".lasso").setAttribute("d", "M" + drag.path.map(p => `${p.x} ${p.y}`).join("L") + "Z");
  } else if (drag.moved) {
    const scale = svg.getScreenCTM().a;
    view([drag.box[0] - dx / scale, drag.box[1] - dy / scale, box[2], box[3]]); hide();
  }
});
svg.addEventListener("pointerup", event => {
  if (!drag) return;
  const {moved, path, was} = drag; drag = null;
  find(".lasso").removeAttribute("d");
  if (path && moved) {
    const within = ([x, y]) => path.reduce((odd, a, i) => {
      const b = path[(i || path.length) - 1];
      return a.y > y !== b.y > y && x < (b.x - a.x) * (y - a.y) / (b.y - a.y) + a.x ? !odd : odd; }, false);
    trigger("lasso", {points: at.flatMap((point, n) => within(point) ? [n] : [])});
    tool("lasso");
  } else if (!moved) {
    const touch = event.pointerType === "touch", n = nearest(event, touch ? 28 : 14);
    if (touch && n !== was) show(n); else pick(n);                     // a finger cannot hover: it looks first
  }
});
svg.addEventListener("pointercancel", () => { drag = null; find(".lasso").removeAttribute("d"); });
svg.addEventListener("keydown", event => {
  const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
  const name = {"+": "in", "=": "in", "-": "out", "0": "all"}[event.key];
  if (!scene || !step && !name && event.key !== "Enter") return;
  event.preventDefault();
  if (name) tool(name);
  if (step) view([box[0] + step[0] * box[2] / 12, box[1] + step[1] * box[3] / 12, box[2], box[3]]);
  const n = nearest(middle(), 1e6);
  if (event.key === "Enter") pick(n); else show(n);
});
watch("value", build); watch("paint", colour);
build();
"""


def chart(**options) -> gr.HTML:
    """The component; listen to its `pick` and `lasso`."""
    return gr.HTML(None, html_template=PAGE, js_on_load=SCRIPT, apply_default_css=False, padding=False, paint=None,
                   **options)


def colours(groups: Groups, placed: Placed, chosen: list[int] | None = None) -> dict:
    """What `paint` takes: the group of every point, the legend, the query's place, and the points chosen or None."""
    query = None if placed.query is None else placed.query.round(4).tolist()
    return {"members": groups.members, "legend": [list(entry) for entry in groups.legend], "query": query,
            "chosen": chosen}
