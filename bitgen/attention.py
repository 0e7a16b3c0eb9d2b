"""What attention does: how spread it is in every head, and where words look in an image.

B images, N captions, L tokens, P patches, H heads. Nothing here changes the model, its gradients or the random state.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from bitgen.data import Batch
from bitgen.diagnostics import deterministic_eval
from bitgen.model import BitGen
from bitgen.transformer import Attention


@torch.no_grad()
def attention_entropy(model: BitGen, batch: Batch) -> dict[str, list[float]]:
    """Layer -> entropy of the attention of each of its heads (H), as a share of that of looking at all alike.

    1 is a head that looks everywhere alike, 0 one that looks at a single token. Padding neither looks nor is looked at;
    where a query may look at one token only (the first of a causal decoder) it does not count.
    """
    found: dict[str, list[float]] = {}
    mask = batch.attention_mask
    names = {module: name for name, module in model.named_modules() if isinstance(module, Attention)}

    def hook(module, arguments, given, _):
        x, keys, allowed, _ = [*arguments, None, None, None][:4]
        key, _ = module.keys(x) if keys is None else keys
        query = module._split(module.query(x))
        scores = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).float()
        allowed = torch.ones_like(scores[:1, :1], dtype=torch.bool) if allowed is None else allowed
        weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
        queries = mask if x.shape[:2] == mask.shape else mask.new_ones(x.shape[:2])
        found[_readable(names[module])] = _entropies(weights, allowed.expand_as(scores).sum(-1), queries)

    hooks = [module.register_forward_hook(hook, with_kwargs=True) for module in names]
    try:
        with deterministic_eval(model):
            tower = _tower_attention(model, batch.pixel_values)
            image, text = model.image_tokens(batch.pixel_values), model.text_tokens(batch.input_ids, mask)
            firsts = batch.firsts()
            mask = mask[firsts]
            everything = {"word_to_patch": [], "patch_to_word": []}  # or the last layer would compute two rows only
            model.fusion(image.tokens, text.tokens[firsts], mask, attentions=everything)
            model.decode(batch.input_ids[firsts], model.context(image))
    finally:
        for hook in hooks:
            hook.remove()
    return tower | found


def _entropies(weights: Tensor, candidates: Tensor, queries: Tensor) -> list[float]:
    """Mean over queries of entropy / ln(candidates) for each head: (B, H, L, S), (B, H, L), (B, L) bool -> H."""
    counted = queries[:, None] & (candidates > 1)
    shares = torch.special.entr(weights).sum(-1) / candidates.clamp(min=2).log()
    return ((shares * counted).sum((0, 2)) / counted.sum((0, 2)).clamp(min=1)).tolist()


def _readable(name: str) -> str:
    """`text.blocks.0.self_attention` as `text 0 self`."""
    part, _, layer, kind = name.split(".")
    return f"{part} {layer} {kind.removesuffix('_attention').replace('_', ' ')}"


def _tower_attention(model: BitGen, pixel_values: Tensor) -> dict[str, list[float]]:
    """The same of the tower's blocks, which are transformers' own. A copy, since asking leaves hooks in the blocks."""
    tower = copy.deepcopy(model.vision.model)
    tower.set_attn_implementation("eager")
    layers = tower(pixel_values, output_attentions=True).attentions                        # each (B, H, 1+P, 1+P)
    return {f"vision {i} self": _entropies(x.float(), torch.full_like(x[..., 0], x.shape[-1]),
                                           torch.ones_like(x[:, 0, :, 0], dtype=torch.bool))
            for i, x in enumerate(layers)}


# Where words look -----------------------------------------------------------------------------------------


@torch.no_grad()
def decoder_attention(model: BitGen, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Attention (L - 1, P) of the decoder over patches when it predicts token 1 and following of one caption.

    pixel_values (1, 3, S, S); input_ids, attention_mask (1, L'), L tokens of which are real. Mean over layers and
    heads; what goes to the image's own token and to the memory's reading is what is missing to 1.
    """
    weights: list[Tensor] = []
    input_ids = input_ids[:, attention_mask[0].bool()]
    with deterministic_eval(model):
        context = model.context(model.image_tokens(pixel_values))
        embedded = model.text.embedding(input_ids[:, :-1])
        model.decoder(embedded, model.decoder.contexts(context), weights=weights)          # each (1, H, L-1, 1+P+1)
    return torch.stack(weights).mean((0, 1, 2))[:, 1:1 + model.vision.patches].float()


@torch.no_grad()
def occlusion(model: BitGen, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """How far the cosine of image and caption falls when one patch is painted over, for each patch (P,).

    What the contrast needs to see, whatever its attention does (Zeiler & Fergus 2014, arXiv 1311.2901, section 4.2).
    Painted in the image's median colour; below 0 where the caption fits better without. Arguments as of
    `decoder_attention`.
    """
    patches = model.vision.patches
    side = math.isqrt(patches)
    size = pixel_values.shape[-1] // side
    hidden = torch.eye(patches, dtype=torch.bool, device=pixel_values.device).view(patches, 1, side, side)
    hidden = hidden.repeat_interleave(size, 2).repeat_interleave(size, 3)                  # (P, 1, S, S)
    median = pixel_values[0].flatten(1).median(1).values[None, :, None, None]
    with deterministic_eval(model):
        caption = model.encode_text(input_ids, attention_mask)[0]
        whole = model.encode_image(pixel_values)[0] @ caption
        without = [model.encode_image(torch.where(rows, median, pixel_values)) @ caption for rows in hidden.split(64)]
    return whole - torch.cat(without)
