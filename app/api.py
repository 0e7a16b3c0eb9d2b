"""Typed endpoints for programs: REST under `/gradio_api/call/NAME`, `gradio_client`, and MCP where it is installed.

An image is given as base64 text, with or without a `data:` prefix.
"""

from __future__ import annotations

import base64
import importlib.util
from typing import Literal

from PIL import Image

from app import caption as caption_module
from app import limits
from app import memory as memory_module
from app import search as search_module
from app.bench import Bench
from app.memory import Edits
from app.models import View
from app.search import Query, Wish
from bitgen.images import MAX_BYTES, safe_open_image


def build(bench: Bench) -> None:
    """Register the endpoints; inside a `gr.Blocks`."""
    import gradio as gr

    from app.pages import ASK, for_programs

    how = ASK | {"api_visibility": "public"}
    for endpoint in endpoints(bench):
        gr.api(for_programs(endpoint), api_name=endpoint.__name__, **how)


def endpoints(bench: Bench) -> list:
    """The endpoints, as typed functions."""

    def view(run: str, checkpoint: str) -> View:
        if bench.start is None and not run:
            raise ValueError("this server has no model: name a run")
        if not run and not checkpoint:
            return bench.start
        choice = bench.models.choose(run or bench.start.choice.source, checkpoint or None)
        return View(choice, bench.start.gallery if bench.start else bench.gallery_names[0])

    def search(words: str = "", image: str = "", find: Literal["images", "captions"] = "images", top: int = 12,
               rerank: bool = False, run: str = "", checkpoint: str = "") -> list[dict]:
        """Search the gallery by words, by an image (base64), or by both.

        Returns, best first: name of the picture, caption, score (cosine), if `rerank` match (the matching head's
        probability) and told (how much likelier the decoder finds the words with the picture than with a blank one,
        in nats), and the rank by score alone. run, checkpoint: another model than the one the server started with.
        """
        query = Query(limits.text(words, "words"), file=_picture(image))
        answer = search_module.search(bench, view(run, checkpoint), query, Wish(find, top, rerank=rerank))
        return [{"name": hit.name, "caption": hit.text, "score": round(hit.score, 6), "match": hit.match,
                 "told": hit.told, "rank_by_score": hit.before} for hit in answer.hits]

    def caption(image: str, way: Literal["greedy", "beam", "nucleus"] = "greedy", run: str = "",
                checkpoint: str = "") -> list[str]:
        """Caption an image (base64): one caption, or several different ones by nucleus sampling."""
        return caption_module.caption(bench, view(run, checkpoint), _picture(image), way)

    def match(image: str, texts: list[str], run: str = "", checkpoint: str = "") -> list[dict]:
        """Score texts against an image (base64), best first.

        Returns for each text: similarity (cosine), match (probability that they belong together) and share (softmax
        over the texts; 1 / number of texts is chance).
        """
        found = caption_module.scores(bench, view(run, checkpoint), _picture(image), texts)
        return [score._asdict() for score in found]

    def memory_write(images: list[str], words: list[str], ask: str = "", run: str = "", checkpoint: str = "") -> dict:
        """Write facts into the memory, images (base64) with words, and read it. Nothing stays on the server: a program
        that goes on sends its earlier facts along.

        Returns `facts`, those saved with the model first: of each its words, its rank among them when its image is
        shown alone, and how unsure the memory was before any was written and is now (variance). With `ask`, another
        image, also `before` and `after` these images: its caption, variance and what it brings to mind.
        """
        images, words = limits.several(images, "images"), limits.several(words, "words")
        if len(images) != len(words):
            raise ValueError(f"{len(images)} images and {len(words)} words: give as many of both")
        here, edits = view(run, checkpoint), Edits()
        for image, text in zip(images, words):
            edits = memory_module.write(bench, here, edits, _picture(image), text)
        rows = memory_module.read_back(bench, here, edits)
        answer = {"facts": [dict(zip(("words", "rank", "variance_before", "variance"), row)) for row in rows]}
        if ask:
            told = memory_module.tell(bench, here, edits, _picture(ask))
            answer |= {name: side._asdict() for name, side in zip(("before", "after"), told)}
        return answer

    return [search, caption, match, memory_write]


def check_mcp() -> None:
    """Raises `ValueError` where MCP is asked for without its packages: gradio itself would start and say nothing."""
    if importlib.util.find_spec("mcp") is None:
        raise ValueError("--mcp needs the mcp package: pip install 'gradio[mcp]'")


def _picture(image: str) -> Image.Image | None:
    """A base64 image, checked, RGB; None for none."""
    if image is None or image == "":
        return None
    if not isinstance(image, str):
        raise ValueError(f"image: expected base64 text, got {type(image).__name__}")
    text = image.partition(",")[2] if image.startswith("data:") else image
    if len(text) > MAX_BYTES * 4 // 3 + 4:
        raise ValueError(f"image: larger than {MAX_BYTES // 10**6} MB")
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise ValueError("image: expected base64 text") from None
    return safe_open_image(data)
