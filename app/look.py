"""Where it looks: the attention between words and patches as heat-maps over a picture. Plain functions, no gradio."""

from __future__ import annotations
