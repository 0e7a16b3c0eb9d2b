"""How the app looks: one theme, light and dark, system fonts only, nothing fetched from anywhere."""

from __future__ import annotations

import gradio as gr

FONT = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace"]

CSS = """
.gradio-container {max-width: 1280px !important; margin: 0 auto !important; padding: 12px 20px 40px !important;}
.gradio-container .main.app {max-width: none; width: 100%; padding: 0;}
html, body {overflow-x: hidden;}
footer {opacity: .8;}
#head {align-items: baseline; gap: 4px 16px;}
#head h1 {font-size: 1.35rem; font-weight: 650; letter-spacing: -.01em; margin: 0;}
#status p {color: var(--body-text-color-subdued); margin: 0;}
.quiet p, .quiet {color: var(--body-text-color-subdued) !important; margin: 0;}
#no-model {max-width: 640px; margin: 8vh auto !important; text-align: center;}
#no-model h2 {font-weight: 600;}
#no-model pre {text-align: left;}
.results .grid-container {gap: 10px;}
.results .thumbnail-item {aspect-ratio: auto; height: auto; background: none; border: 0; overflow: visible;}
.results .thumbnail-item img {aspect-ratio: 1; width: 100%; border-radius: var(--radius-sm);}
.results .caption-label {position: static; display: block; max-width: none; background: none; border: 0;
  box-shadow: none; color: var(--body-text-color); font-size: .8rem; padding: 4px 2px; text-align: left; left: 0;
  white-space: pre-line; display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden;}
.pixelated img {image-rendering: pixelated;}
button:focus-visible, a:focus-visible, input:focus-visible, textarea:focus-visible, [tabindex]:focus-visible
  {outline: 2px solid var(--color-accent); outline-offset: 2px;}
@media (max-width: 640px) {
  .gradio-container {padding: 8px 10px 32px !important;}
  .results .grid-container {grid-template-columns: repeat(2, minmax(0, 1fr)) !important;}
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
        button_primary_background_fill_dark="*primary_600", button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white", button_primary_text_color_dark="white",
        body_background_fill="white", body_background_fill_dark="*neutral_950")
