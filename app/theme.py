"""How the app looks: one theme, light and dark, system fonts only, nothing fetched from anywhere."""

from __future__ import annotations

import gradio as gr

FONT = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace"]

CSS = """
.gradio-container {box-sizing: border-box; width: 100% !important; max-width: 1240px !important;
  margin: 0 auto !important; padding: 14px 20px 40px !important;}
.gradio-container .main.app, .gradio-container .wrap, .gradio-container main.contain
  {max-width: none; width: 100%; min-width: 0;}
.gradio-container .main.app {padding: 0;}
#head {align-items: baseline; justify-content: space-between; gap: 2px 16px;}
#head > * {flex: 0 1 auto; min-width: 0; width: auto;}
#head h1 {font-size: 1.35rem; font-weight: 650; letter-spacing: -.01em; margin: 0;}
#status {text-align: right; min-width: min(100%, 24rem); min-height: 1.5rem;}  /* room for what loading says */
#status p, .quiet p, .quiet {color: var(--body-text-color-subdued) !important; margin: 0;}
.tabs h3 {font-size: 1.05rem; font-weight: 600; margin: 6px 0 0;}
#no-model {max-width: 640px; margin: 8vh auto !important;}
#no-model h2 {font-weight: 600;}

.submit-button {border-radius: var(--radius-sm) !important; align-self: stretch; height: auto !important;
  margin: 0 0 0 8px !important; padding: 0 16px !important; color: var(--button-primary-text-color) !important;
  background: var(--button-primary-background-fill) !important; font-weight: 600;}
.submit-button:hover {background: var(--button-primary-background-fill-hover) !important;}
.actions {flex-wrap: wrap;}
.actions > button {flex: 0 0 auto !important;}
#keep {align-items: end;}
#keep-button {flex: 0 0 auto; margin-bottom: 10px;}

.results .grid-wrap {height: auto !important; min-height: 0 !important; max-height: none !important; overflow: visible;}
.results .grid-container {gap: 14px 10px; grid-template-rows: none !important; grid-auto-rows: auto;}
.results .thumbnail-item {aspect-ratio: auto; height: auto; background: none; border: 0; overflow: visible;
  box-shadow: none !important; opacity: 1 !important; filter: none !important;}
.results .thumbnail-item img {aspect-ratio: 1; width: 100%; border-radius: var(--radius-sm); opacity: 1 !important;}
.results .thumbnail-item.selected img, .results .thumbnail-item:hover img {outline: 3px solid var(--color-accent);}
.results .caption-label {position: static; max-width: none; background: none; border: 0; box-shadow: none;
  color: var(--body-text-color) !important; opacity: 1 !important; font-size: .8rem; line-height: 1.35;
  padding: 5px 1px 0; text-align: left; white-space: pre-line; display: -webkit-box; -webkit-box-orient: vertical;
  -webkit-line-clamp: 3; overflow: hidden; height: 4.4em;}
.pixelated img {image-rendering: pixelated;}
.filled img {width: 100% !important; height: 100% !important; object-fit: contain;}
.table-wrap *, .confidence-set * {font-family: var(--font) !important;}
.sight img {width: 100% !important; max-width: 480px; height: auto !important; border-radius: var(--radius-sm);}

.unseen {display: none !important;}
#place .token {filter: hue-rotate(170deg);}  /* how much is no alarm: teal instead of gradio's red */
#slots .wrap {display: grid; grid-template-columns: repeat(auto-fill, minmax(74px, 1fr)); gap: 6px;}
#slots label {position: relative; overflow: hidden; padding: 6px 8px; margin: 0; min-width: 0; justify-content: center;
  white-space: pre; text-align: center; line-height: 1.25; font-size: .8rem; border: 1px solid
  var(--border-color-primary); background: linear-gradient(to top, var(--primary-200) var(--fill, 0%), transparent 0);
  color: var(--body-text-color);}
.dark #slots label {background: linear-gradient(to top, var(--primary-800) var(--fill, 0%), transparent 0);}
#slots label.selected, #slots label:focus-within {outline: 2px solid var(--color-accent);}
#slots input {position: absolute; opacity: 0; pointer-events: none;}
#slots label span {margin: 0; white-space: pre-line;}
#facts label span {overflow-wrap: anywhere; min-width: 0;}
#card table {display: block; overflow-x: auto;}
#card :is(td, th) {word-break: normal;}

#map {--g0: #0072b2; --g1: #e69f00; --g2: #009e73; --g3: #cc79a7; --g4: #56b4e9; --g5: #9a9a9a;
  --gq: var(--body-text-color);}
#map, #map .html-container {padding: 0;}
.dark #map {--g0: #4ea3dc; --g2: #2fc79b; --g4: #f0e442;}
#map .map-frame {position: relative; border: 1px solid var(--border-color-primary); border-radius: var(--radius-sm);
  overflow: hidden; background: var(--background-fill-secondary);}
#map svg {display: block; width: 100%; height: min(56vh, 600px); cursor: grab; touch-action: pan-y;}
#map .lassoing svg {cursor: crosshair; touch-action: none;}
#map svg:focus {outline: none;}
#map svg:focus-visible {outline: 2px solid var(--color-accent); outline-offset: -2px;}
#map svg path {vector-effect: non-scaling-stroke; fill: none;}
#map .joins {stroke: var(--body-text-color-subdued); stroke-width: 1px; stroke-opacity: .28;}
#map .dot {stroke-linecap: round; stroke-width: 9px; stroke-opacity: .85;}
#map .dot.said {stroke-linecap: square; stroke-width: 6px;}
#map .dot.out {stroke-opacity: .12;}
#map .dot.on {stroke-width: 16px; stroke-opacity: 1;}
#map .g0 {stroke: var(--g0);} #map .g1 {stroke: var(--g1);} #map .g2 {stroke: var(--g2);}
#map .g3 {stroke: var(--g3);} #map .g4 {stroke: var(--g4);} #map .g5 {stroke: var(--g5);}
#map .query path {stroke-linecap: round; stroke: var(--gq); stroke-width: 24px; stroke-opacity: .35;
  pointer-events: none;}
#map .query .heart {stroke-width: 11px; stroke-opacity: 1;}
#map .lasso {stroke: var(--color-accent); stroke-width: 2px; fill: var(--color-accent); fill-opacity: .12;}
.map-tools {position: absolute; top: 8px; right: 8px; display: flex; gap: 4px;}
.map-tools button {min-width: 34px; height: 34px; padding: 0 9px; border-radius: var(--radius-sm); font-size: .9rem;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-primary);
  color: var(--body-text-color); cursor: pointer;}
.map-tools button:hover, .map-tools [aria-pressed=true] {border-color: var(--color-accent);
  color: var(--color-accent);}
.map-card {position: absolute; visibility: hidden; width: 176px; padding: 8px; border-radius: var(--radius-sm);
  border: 1px solid var(--border-color-primary); background: var(--background-fill-primary);
  color: var(--body-text-color); font-size: .8rem; line-height: 1.35; pointer-events: none; z-index: 2;}
.map-card.on {visibility: visible;}
.map-thumb {width: 100%; aspect-ratio: 1; border-radius: var(--radius-sm); image-rendering: pixelated;}
.map-rank {color: var(--body-text-color-subdued); margin: 6px 0 2px;}
.map-words {display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 5; overflow: hidden;}
.map-legend {display: flex; flex-wrap: wrap; gap: 2px 18px; padding: 8px 2px 0; font-size: .85rem;}
.map-legend i {display: inline-block; width: 11px; height: 11px; border-radius: 6px; margin-right: 6px;}
#map i.g0 {background: var(--g0);} #map i.g1 {background: var(--g1);} #map i.g2 {background: var(--g2);}
#map i.g3 {background: var(--g3);} #map i.g4 {background: var(--g4);} #map i.g5 {background: var(--g5);}
#map i.gq {background: var(--gq);}

footer .divider {display: none !important;}

button:focus-visible, a:focus-visible, input:focus-visible, textarea:focus-visible, [tabindex]:focus-visible
  {outline: 2px solid var(--color-accent) !important; outline-offset: 2px;}
.dark {--color-accent: var(--primary-400);}
@media (max-width: 640px) {
  .gradio-container {padding: 10px 12px 32px !important;}
  #status {text-align: left;}
  .results .grid-container {grid-template-columns: repeat(2, minmax(0, 1fr)) !important;}
  .table-wrap * {font-size: .85rem;}
  .table-wrap .cell-wrap {padding: 6px 4px;}
  .table-wrap .cell-menu-button {display: none;}
  .table-wrap th .text {word-break: normal; overflow-wrap: normal; font-size: .75rem;}
  #examples .gallery {flex-wrap: nowrap; overflow-x: auto; padding-bottom: 4px;}
  #examples .gallery button {white-space: nowrap; flex: 0 0 auto;}
  #rerank .info, #picture .wrap {font-size: 0; line-height: 0;}
  #ask-picture {flex-flow: row nowrap; gap: 10px;}
  #ask-picture .actions {flex-direction: column; flex-wrap: nowrap; flex: 0 0 auto; width: auto; gap: 10px;}
  #picture {height: 96px !important; flex: 1 1 auto;}
}
"""


def theme() -> gr.themes.Base:
    """Slate on white (or on near-black), one accent, small radii, hairline borders."""
    return gr.themes.Base(primary_hue="teal", secondary_hue="slate", neutral_hue="slate", font=FONT, font_mono=MONO,
                          radius_size="sm", spacing_size="md").set(
        block_border_width="1px", block_shadow="none", block_shadow_dark="none",
        block_label_background_fill="transparent", block_label_background_fill_dark="transparent",
        block_label_border_width="0px", block_label_text_color="*body_text_color_subdued",
        block_label_text_weight="500", block_title_text_weight="500",
        button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700", button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white", button_primary_text_color_dark="white",
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_400",
        color_accent="*primary_700",
        input_placeholder_color="*neutral_500", input_placeholder_color_dark="*neutral_400",
        body_background_fill="white", body_background_fill_dark="*neutral_950")
