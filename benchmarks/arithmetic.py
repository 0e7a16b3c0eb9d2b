"""What a sample costs before anything is measured: FLOPs and bytes by tower, and what follows from them.

    python benchmarks/arithmetic.py

Counted on torch's `meta` device, where tensors have shapes and no numbers, so it takes seconds for any size. A training
step of one image is a forward and a backward pass of the tower, a forward of the momentum copy, and `--captions`
captions of `--tokens` tokens through text encoder, momentum copy (one of them), decoder and text loss; fusion and
memory are left out. `hours` and `days` are this arithmetic over a rate of arithmetic: look up what `train_step.py
parts` gives as GFLOP over ms on the computer in question.
"""

from __future__ import annotations

import measure
import torch

from bitgen.config import ModelConfig, VisionConfig
from bitgen.model import BitGen

TOWERS = [("dinov2-nano", 64), ("dinov2-small", 112), ("dinov2-small", 224), ("dinov2-base", 224)]
VOCABULARIES = {"8,192": 8192, "GPT-2's": 50257}
COCO, CC12M = 118_287, 12_423_374  # training images of COCO 2017; pairs of CC12M (arXiv 2102.08981)
RATES = [0.1, 10, 100, 300]  # TFLOP/s sustained


def costs(name: str, size: int, vocab: int, captions: int, tokens: int) -> dict[str, float]:
    """FLOPs of one image's share of a step, by part, and parameters."""
    with torch.device("meta"):
        model = BitGen(ModelConfig(vocab_size=vocab, memory_slots=0), VisionConfig(name=name, image_size=size))
        pixels, ids = torch.zeros(1, 3, size, size), torch.zeros(captions, tokens, dtype=torch.int64)
        mask = torch.ones(captions, tokens, dtype=torch.bool)
    model.vision.set_attention("bf16", "cpu")  # plain products: what the counter knows on every device

    def image() -> None:
        model.image_tokens(pixels).feature.sum().backward()

    def text() -> None:
        model.text_tokens(ids, mask).feature.sum().backward()

    def decoder() -> None:
        with torch.no_grad():
            context = model.image_tokens(pixels).tokens.expand(captions, -1, -1)
        model.decode(ids, context).sum().backward()

    with torch.no_grad():
        again = measure.flops(lambda: model.image_tokens(pixels))
        momentum = again + measure.flops(lambda: model.text_tokens(ids[:1], mask[:1]))
    loss = 6 * captions * (tokens - 1) * vocab * model.config.hidden_size
    return {"tower": measure.flops(image), "text": measure.flops(text), "momentum": momentum,
            "decoder": measure.flops(decoder) - again, "text loss": loss,
            "parameters": sum(p.numel() for p in model.parameters())}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--captions", type=int, default=2, help="captions an image")
    parser.add_argument("--tokens", type=int, default=16, help="tokens a caption, begin and end among them")
    parser.add_argument("--batch", type=int, default=4096, help="images a step over all processes, for the network")
    options = parser.parse_args()
    where = measure.begin()
    rows, times, found = [], [], {}
    for name, size in TOWERS:
        for label, vocab in VOCABULARIES.items():
            cost = costs(name, size, vocab, options.captions, options.tokens)
            total = sum(cost.values()) - cost["parameters"]
            gathered = (1 + options.captions) * options.batch * 128 * 4 * 2  # features there, their gradients back
            rows.append([f"{name}, {size} px", label, *(cost[part] / 1e9 for part in (
                "tower", "text", "momentum", "decoder", "text loss")), total / 1e9, 3 * size**2 / 1e3,
                cost["parameters"] / 1e6, 8 * cost["parameters"] / 1e6, gathered / 1e6])
            for rate in RATES:
                each = total / (rate * 1e12)
                times.append([f"{name}, {size} px", label, rate, 1 / each, COCO * 50 * each / 3600,
                              CC12M * 10 * each / 86400])
            found[f"{name} {size} {vocab}"] = cost
    print(f"{options.captions} captions of {options.tokens} tokens an image; the network for {options.batch:,} images "
          "a step and many processes, float32\n")
    print(measure.table(["tower", "vocabulary", "tower GFLOP", "text", "momentum", "decoder", "text loss", "an image",
                         "kB prepared", "M parameters", "MB of gradients sent a step", "MB of features"], rows))
    print(measure.table(["tower", "vocabulary", "TFLOP/s", "images/s", "COCO, 50 epochs: hours",
                         "CC12M, 10 epochs: days"], times))
    measure.write(options.json, {"environment": where, **found})


if __name__ == "__main__":
    main()
