"""The same model and objective as one would first write them with transformers and torch.nn, to be measured against.

Same weights, same losses (a test holds them equal); none of the savings: torch's own attention layers, fusion over
every pair in full, the decoder's logits for padding too and all at once, the memory written pair by pair, the moving
average and AdamW parameter by parameter.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitgen.config import LossConfig
from bitgen.memory import Belief, Reading, evidence, kl_divergence, quality
from bitgen.model import BitGen, pair_key
from bitgen.negatives import MomentumCopy
from bitgen.objective import Objective, Written
from bitgen.transformer import Attention


class PlainObjective(Objective):
    """`Objective` over a copy of `model` that is made of torch's own layers."""

    def __init__(self, model: BitGen, config: LossConfig):
        model = copy.deepcopy(model)
        dropout = model.config.dropout
        model.text, model.decoder = Encoder(model.text, dropout), Decoder(model.decoder, dropout)
        model.fusion = Fusion(model.fusion)
        model.vision.model.set_attn_implementation("sdpa")  # transformers' default
        super().__init__(model, config)
        if self.momentum:
            self.momentum = Momentum(model, config.momentum)

    def _reconstruct(self, image, reading, batch, other, losses, report) -> None:
        owner = batch.image_index
        remembered, empty = self.model.context(image, reading)[owner], self.model.context(
            image._replace(feature=image.feature.detach()))[owner]
        states = self.model.decode(batch.input_ids[:, :-1], torch.where(other[:, None, None], remembered, empty))
        logits = F.linear(states, self.model.text.embedding.weight)                       # (N, L-1, V)
        targets = batch.input_ids[:, 1:].masked_fill(~batch.attention_mask[:, 1:], -100)
        losses["text"] = F.cross_entropy(logits.flatten(0, 1), targets.flatten(),
                                         label_smoothing=self.config.label_smoothing)

    def _episode(self, image, text, code, several, losses, report):
        memory, prior = self.model.memory, self.model.memory.prior()
        with torch.autocast(image.device.type, enabled=False):
            value, kept = self.model.value(code.float()), several & (torch.rand(
                len(image), device=image.device) >= self.config.left_out)
            key = pair_key(image, text).detach()
            address, asked = memory.address(key), memory.address(image.detach())
            count = -(-len(image) // self.config.episode)
            length, means, variances, divergences = -(-len(image) // count), [], [], []
            total = Belief(torch.zeros_like(prior.precision), torch.zeros_like(prior.information))
            for start in range(0, len(image), length):
                belief = prior
                for i in range(start, min(start + length, len(image))):
                    if kept[i]:
                        added = evidence(address[i:i + 1], value[i:i + 1], memory.noise)
                        belief, total = belief + added, total + Belief(*(x.detach() for x in added))
                inverse = torch.linalg.inv(belief.precision)
                for i in range(start, min(start + length, len(image))):
                    means.append(asked[i] @ inverse @ belief.information)
                    variances.append(asked[i] @ inverse @ asked[i] + memory.noise**2)
                divergences.append(kl_divergence(belief, prior))
            losses["memory_kl"] = torch.stack(divergences).mean()
            reading = Reading(torch.stack(means), torch.stack(variances))
            report["memory_quality"] = quality(value[kept].detach(), reading.mean[kept])
        return reading, Written(key, address.detach() * kept[:, None], total)


class Momentum(MomentumCopy):
    """The moving average, parameter by parameter."""

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        done = int(self.updates)
        decay = min(self.decay, (1 + done) / (10 + done))
        for mine, theirs in zip(self.model.parameters(), model.parameters(), strict=True):
            mine.mul_(decay).add_(theirs, alpha=1 - decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
        self.updates.add_(1)


class Encoder(nn.Module):
    """The text encoder by `nn.TransformerEncoderLayer`."""

    def __init__(self, ours: nn.Module, dropout: float):
        super().__init__()
        self.embedding, self.position, self.norm = ours.embedding, ours.position, ours.norm
        self.layers = nn.ModuleList(_layer(nn.TransformerEncoderLayer, block, dropout) for block in ours.blocks)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embedding(input_ids) + self.position.weight[: input_ids.shape[1]]
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=~attention_mask)
        return self.norm(x)


class Decoder(nn.Module):
    """The text decoder by `nn.TransformerDecoderLayer`."""

    def __init__(self, ours: nn.Module, dropout: float):
        super().__init__()
        self.position, self.norm = ours.position, ours.norm
        self.layers = nn.ModuleList(_layer(nn.TransformerDecoderLayer, block, dropout) for block in ours.blocks)

    def contexts(self, context: Tensor) -> Tensor:
        return context

    def forward(self, embedded: Tensor, context: Tensor) -> Tensor:
        length = embedded.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=embedded.device).triu(1)
        x = embedded + self.position.weight[:length]
        for layer in self.layers:
            x = layer(x, context, tgt_mask=later)
        return self.norm(x)


class Fusion(nn.Module):
    """Every layer over every pair, all rows of it."""

    def __init__(self, ours: nn.Module):
        super().__init__()
        self.layers, self.norm_image, self.norm_text = nn.ModuleList(ours.layers), ours.norm_image, ours.norm_text
        for layer in self.layers:
            for name in ("self_attention", "words_to_patches", "patches_to_words"):
                setattr(layer, name, _attention(getattr(layer, name)))

    def forward(self, image: Tensor, text: Tensor, attention_mask: Tensor, pairs) -> Tensor:
        images, captions = pairs
        image, text, padding = image[images], text[captions], ~attention_mask[captions]
        for layer in self.layers:
            words, normed = text, layer.norm_self(text)
            attended = layer.self_attention(normed, normed, normed, padding, need_weights=False)[0]
            text = text + layer.dropout(attended)
            seen = layer.words_to_patches(layer.norm_words(text), image, image, need_weights=False)[0]
            read = layer.patches_to_words(layer.norm_patches(image), words, words, padding, need_weights=False)[0]
            text = text + layer.dropout(layer.word_gate * seen)
            text = text + layer.dropout(layer.ffn(layer.norm_ffn(text)))
            image = image + layer.dropout(layer.patch_gate * read)
        return torch.cat([self.norm_text(text[:, 0]), self.norm_image(image[:, 0])], -1)


def _attention(ours: Attention) -> nn.MultiheadAttention:
    theirs = nn.MultiheadAttention(ours.query.in_features, ours.num_heads, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    return theirs


def _layer(kind: type[nn.Module], block: nn.Module, dropout: float) -> nn.Module:
    """torch's pre-norm layer with the weights of our block."""
    first, second = block.ffn[0], block.ffn[2]
    theirs = kind(first.in_features, block.self_attention.num_heads, first.out_features, dropout,
                  nn.GELU(), batch_first=True, norm_first=True)
    norms = [block.norm_self, *([block.norm_cross] if hasattr(block, "cross") else []), block.norm_ffn]
    theirs.self_attn = _attention(block.self_attention)
    if hasattr(block, "cross"):
        theirs.multihead_attn = _attention(block.cross)
    theirs.linear1.load_state_dict(first.state_dict())
    theirs.linear2.load_state_dict(second.state_dict())
    for number, norm in enumerate(norms, 1):
        getattr(theirs, f"norm{number}").load_state_dict(norm.state_dict())
    return theirs
