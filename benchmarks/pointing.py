"""Do words point at what they say? The pointing game on `scenes`, where every object's place is known.

    python benchmarks/pointing.py runs/scenes --images 200

For each object a caption names, its words' maps are added; a hit is when the strongest place lies in the object's box
(Zhang et al. 2016, arXiv 1608.00507). Chance is the share of the image that the boxes cover. Printed as a Markdown
table: what words and places cost together (`bitgen.grounding`), and the attention of the fusion's layers, plain and
weighted by the gradient of the matching log-odds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import measure
import torch
from torch import Tensor

import bitgen
from bitgen.config import DataConfig
from bitgen.data import open_data
from bitgen.grounding import attended, ground, words_of
from bitgen.images import normalise
from bitgen.scene_words import FIELDS

KNOWN = {word: (field, name) for field in ("colour", "shape", "size", "texture")
         for name, words in FIELDS[field].items() for word in words}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("run", help="run folder, checkpoint folder or Hub id")
    parser.add_argument("--images", type=int, default=200)
    options = parser.parse_args()
    where = measure.begin(None)
    model, processor = bitgen.load(options.run)
    size = processor.vision.image_size
    data = open_data(DataConfig(root="scenes"), "test", size)
    hits, objects, area = Counter(), 0, 0.0
    images = min(options.images, len(data))
    for i in range(images):
        pixels = normalise(data.pixels(i, size)[None], processor.vision.mean, processor.vision.std)
        caption = data.captions[i][i % len(data.captions[i])]
        words = processor(text=[caption])
        named = list(phrases(caption, data.truth[i]))
        for method, (spoken, maps) in looks(model, processor.tokenizer, pixels, **words).items():
            for box, said in named:
                chosen = [row for row, word in enumerate(spoken) if row in said]
                hits[method] += pointed(maps[chosen].sum(0), box, size)
        objects += len(named)
        area += sum((right - left) * (bottom - top) for (left, top, right, bottom), _ in named) / size**2
    rows = [["chance", area / objects], *([method, count / objects] for method, count in hits.most_common())]
    print(f"{options.run}: {objects} objects named in {images} captions\n")
    print(measure.table(["words point at their object", "share"], rows))
    measure.write(options.json, {"environment": where, "objects": objects, "images": images, "rows": rows})


def looks(model, tokenizer, pixel_values: Tensor, input_ids: Tensor,
          attention_mask: Tensor) -> dict[str, tuple[list[str], Tensor]]:
    """Method -> (words, maps (W, G, G)) of one image and one caption."""
    spans = words_of(tokenizer, input_ids[0][attention_mask[0].bool()].tolist())
    words = [word for word, _ in spans]
    forth, back = attended(model, pixel_values, input_ids, attention_mask)
    by_token = {"attention x gradient, words to patches": forth, "attention x gradient, patches to words": back.T}
    seen: dict[str, list[Tensor]] = {"word_to_patch": [], "patch_to_word": []}
    with torch.no_grad():
        image, text = model.image_tokens(pixel_values), model.text_tokens(input_ids, attention_mask)
        model.fusion(image.tokens, text.tokens, attention_mask.bool(), attentions=seen)
    by_token["attention, words to patches"] = sum(x.mean((0, 1))[:, 1:] for x in seen["word_to_patch"])
    by_token["attention, patches to words"] = sum(x.mean((0, 1))[1:].T for x in seen["patch_to_word"])
    found = {"word and place taken away": ground(model, tokenizer, pixel_values, input_ids, attention_mask)}
    side = int(model.vision.patches ** 0.5)
    for method, maps in by_token.items():
        found[method] = words, torch.stack([maps[places].sum(0) for _, places in spans]).unflatten(1, (side, side))
    return found


def phrases(caption: str, truth: dict) -> Iterator[tuple[list[int], set[int]]]:
    """(box, places of its words in the caption) of each object that the caption names: attributes, then the shape."""
    said, places = {}, set()
    for place, word in enumerate(re.findall(r"\w+", caption.lower())):
        if word not in KNOWN:
            continue
        field, name = KNOWN[word]
        said[field] = name
        places.add(place)
        if field == "shape":
            boxes = [thing["box"] for thing in truth["objects"] if said.items() <= thing.items()]
            yield from ((box, places) for box in boxes[:1])
            said, places = {}, set()


def pointed(heat: Tensor, box: list[int], size: int) -> bool:
    """Whether the strongest cell's centre lies in the box."""
    row, column = divmod(int(heat.argmax()), heat.shape[-1])
    x, y = ((place + 0.5) * size / heat.shape[-1] for place in (column, row))
    return box[0] <= x < box[2] and box[1] <= y < box[3]


if __name__ == "__main__":
    main()
