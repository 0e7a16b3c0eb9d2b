"""BitGen, the model: two towers, separate heads for contrast and fusion, episodic memory, decoder.

B images, N captions, M pairs, P patches, L caption tokens, D width, K slots, V vocabulary. Methods return named
intermediates, so that notebooks, app and health checks read what training reads.
"""

# No `from __future__ import annotations` here: `from_pretrained` reads the types of `BitGen.__init__`.
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from bitgen.bitlinear import linear
from bitgen.config import ModelConfig, VisionConfig
from bitgen.fusion import Fusion
from bitgen.generation import generate
from bitgen.memory import Belief, EpisodicMemory, Reading
from bitgen.ranges import check_ranges
from bitgen.text import TextDecoder, TextEncoder
from bitgen.transformer import rows_of
from bitgen.vision import VisionTower

MAX_LOGIT_SCALE = 100.0
EMBEDDING_STD = 0.02
"""Standard deviation of token and position embeddings at the start, as BERT's."""
GROUPS, TOGETHER = 3, 32
"""Captions to be decoded are parted into so many groups of like length, of at least so many captions."""
LOGITS = 2**24
"""Logits of words that are held at once: 64 MB, and as much again at work."""


class Encoded(NamedTuple):
    """One modality, encoded alone: tokens (N, L, D) for fusion and decoder; feature (N, D), unit length."""

    tokens: Tensor
    feature: Tensor


class BitGen(nn.Module, PyTorchModelHubMixin):
    """The complete model. Building it never touches the network.

    `model`, `vision`: the two parts of the configuration that a checkpoint's `config.json` holds.
    """

    tokenizer = None
    """Set by `bitgen.load`, so that `caption` returns words."""

    def __init__(self, model: ModelConfig, vision: VisionConfig):
        super().__init__()
        check_ranges(model, "model")
        check_ranges(vision, "vision")
        if model.hidden_size % model.num_heads:
            raise ValueError(f"model.hidden_size {model.hidden_size} is not a multiple of model.num_heads "
                             f"{model.num_heads}")
        width = model.hidden_size
        self.config = model
        self.vision_config = vision
        self.text = TextEncoder(model)
        self.decoder = TextDecoder(model)
        for module in (*self.text.modules(), *self.decoder.modules()):
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=EMBEDDING_STD)
        self.vision = VisionTower(vision)
        self.project = linear(self.vision.width, width, ternary=model.ternary)
        self.itc_image = nn.Linear(2 * width, width)
        self.itc_text = nn.Linear(width, width)
        self.fusion_image = linear(width, width, ternary=model.ternary)
        self.fusion_text = linear(width, width, ternary=model.ternary)
        self.norm_image = nn.LayerNorm(width)
        self.patch_position = nn.Embedding.from_pretrained(grid_positions(self.vision.patches, width), freeze=False)
        self.fusion = Fusion(model)
        self.match_head = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 2))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / model.temperature)))
        self.memory = None
        if model.memory_slots:
            self.memory = EpisodicMemory(width, width, model.memory_slots, model.memory_noise, model.memory_decay)
            self.value = nn.Sequential(nn.Linear(2 * width, width), nn.LayerNorm(width, elementwise_affine=False))
            self.reading_token = nn.Linear(width + 1, width)

    # Encoders ---------------------------------------------------------------------------------------------

    def image_tokens(self, pixel_values: Tensor) -> Encoded:
        """Normalised pixels (B, 3, S, S) -> tokens (B, 1+P, D), feature (B, D) from the CLS and mean patch tokens.

        P counts the patches that are shown: in training some may be left out (`vision.patch_dropout`).
        """
        shown = self.vision.draw_patches(pixel_values.shape[0], pixel_values.device)
        tokens = self.norm_image(self.project(self.vision(pixel_values, shown)))
        pooled = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], -1)                             # (B, 2D)
        places = self.patch_position.weight if shown is None else self.patch_position(shown)      # ([B,] P, D)
        places = F.pad(places, (0, 0, 1, 0))                                                      # none for CLS
        return Encoded(self.fusion_image(tokens) + places, unit(self.itc_image(pooled)))

    def text_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Encoded:
        """input_ids (N, L) int64, attention_mask (N, L) bool -> tokens (N, L, D), feature (N, D).

        The feature is pooled after self-attention over the whole caption; padding takes no part.
        """
        attention_mask = attention_mask.bool()
        tokens = self.text(input_ids, attention_mask)
        if self.config.pooling == "first":
            pooled = tokens[:, 0]
        else:
            shares = attention_mask / attention_mask.sum(1, keepdim=True)
            pooled = (tokens * shares[..., None]).sum(1).to(tokens.dtype)
        return Encoded(self.fusion_text(tokens), unit(self.itc_text(pooled)))

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, S, S) normalised -> (B, D) float32, unit length."""
        return self.image_tokens(pixel_values).feature

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, L), (N, L) -> (N, D) float32, unit length."""
        return self.text_tokens(input_ids, attention_mask).feature

    def scale(self) -> Tensor:
        """The logit scale, 1 / temperature, clamped to <= 100."""
        return self.logit_scale.float().exp().clamp(max=MAX_LOGIT_SCALE)

    # Matching ---------------------------------------------------------------------------------------------

    def match_tokens(self, image: Tensor, text: Tensor, attention_mask: Tensor,
                     pairs: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Tokens of images and captions -> logits (M, 2), [no, yes], of their pairs (default: image i, caption i)."""
        return self.match_head(self.fusion(image, text, attention_mask.bool(), pairs)).float()

    def match(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N,) probability that image i and caption i belong together."""
        _check_pairs("match", pixel_values, input_ids)
        image, text = self.image_tokens(pixel_values), self.text_tokens(input_ids, attention_mask)
        return self.match_tokens(image.tokens, text.tokens, attention_mask).softmax(-1)[:, 1]

    # Memory -----------------------------------------------------------------------------------------------

    def fact(self, image: Encoded, text: Encoded, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """What is written for M pairs: key (M, D), between both features, and value (M, D), the fused code."""
        return pair_key(image.feature, text.feature), self.value(self.fusion(image.tokens, text.tokens,
                                                                                   attention_mask.bool()))

    def remember(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor,
                 belief: Belief | None = None) -> Belief:
        """`belief` (default: the prior) after writing image i with caption i. Nothing in the model changes."""
        if self.memory is None:
            raise ValueError("this model has no memory: model.memory_slots is 0")
        _check_pairs("remember", pixel_values, input_ids)
        image, text = self.image_tokens(pixel_values), self.text_tokens(input_ids, attention_mask)
        key, value = self.fact(image, text, attention_mask)
        return self.memory.write(self.memory.prior() if belief is None else belief, key, value)

    def context(self, image: Encoded, reading: Reading | None = None) -> Tensor:
        """What the decoder looks at (B, 1+P+1, D): image tokens, and one token of the reading (default: prior's)."""
        if self.memory is None:
            return image.tokens
        if reading is None:
            reading = self.memory.read(self.memory.prior(), image.feature)
        described = torch.cat([reading.mean, reading.variance.log()[..., None]], -1)              # (B, D+1)
        token = self.reading_token(described.to(self.reading_token.weight.dtype))
        return torch.cat([image.tokens, token[:, None].to(image.tokens.dtype)], 1)

    # Decoder ----------------------------------------------------------------------------------------------

    def decode(self, input_ids: Tensor, context: Tensor) -> Tensor:
        """Teacher-forced states (N, L, D): state i, from tokens <= i and the context (N, S, D), predicts token i+1."""
        return self.decoder(self.text.embedding(input_ids), self.decoder.contexts(context))

    def decode_real(self, input_ids: Tensor, attention_mask: Tensor, context: Tensor,
                    rows: Tensor) -> tuple[Tensor, Tensor]:
        """The same of captions (N, L) without padding: states (R, D) of the R tokens before a real one, and those (R,).

        context: (C, S, D), its keys made once; rows: (N,), which of them each caption looks at. On a CPU captions of
        like length go together, so that little is computed for padding: no state sees what comes after it.
        """
        order = attention_mask.sum(1).argsort(stable=True)
        input_ids, real, rows = input_ids[order], attention_mask[order].bool(), rows[order]
        keys, embedded = self.decoder.contexts(context), self.text.embedding(input_ids[:, :-1])
        size = max(TOGETHER, -(-len(order) // GROUPS)) if embedded.device.type == "cpu" else len(order)
        states, targets = [], []
        for some, ids, mask, looked in zip(*(x.split(size) for x in (embedded, input_ids, real, rows))):
            length = int(mask[-1].sum()) if size < len(order) else mask.shape[1]                 # of the longest
            looks = [tuple(rows_of(x, looked) for x in pair) for pair in keys]
            states.append(self.decoder(some[:, :length - 1], looks)[mask[:, 1:length]])
            targets.append(ids[:, 1:length][mask[:, 1:length]])
        return torch.cat(states), torch.cat(targets)

    def text_logits(self, pixel_values: Tensor, input_ids: Tensor, belief: Belief | None = None) -> Tensor:
        """Logits (N, L, V) of the next token at each place, for caption i under image i."""
        _check_pairs("text_logits", pixel_values, input_ids)
        image = self.image_tokens(pixel_values)
        return F.linear(self.decode(input_ids, self._recall(image, belief)), self.text.embedding.weight).float()

    def likelihood(self, image: Encoded, input_ids: Tensor, attention_mask: Tensor,
                   pairs: tuple[Tensor, Tensor]) -> Tensor:
        """Log-likelihood (M,) in nats of captions (N, L) under images, ends included, with an empty memory.

        pairs: index of image and of caption (M,) each. An image's keys are made once, however many pairs it is in.
        """
        images, captions = pairs
        context = [tuple(x[images] for x in keys) for keys in self.decoder.contexts(self.context(image))]
        ids, real = input_ids[captions], attention_mask[captions, 1:].bool()
        states = self.decoder(self.text.embedding(ids[:, :-1]), context)[real]
        weight, found = self.text.embedding.weight, states.new_zeros(real.shape, dtype=torch.float32)
        rows = max(1, LOGITS // len(weight))
        found[real] = torch.cat([-F.cross_entropy(F.linear(some, weight).float(), wanted, reduction="none")
                                 for some, wanted in zip(states.split(rows), ids[:, 1:][real].split(rows))])
        return found.sum(1)

    @torch.no_grad()
    def caption_ids(self, pixel_values: Tensor, num_beams: int = 1, top_p: float | None = None,
                    temperature: float = 1.0, max_tokens: int | None = None, belief: Belief | None = None,
                    generator: torch.Generator | None = None) -> Tensor:
        """Captions as tokens (B, <= max_tokens).

        `belief`: what the memory holds, such as `memory.persistent()`; by default nothing but its prior.
        """
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer; bitgen.load sets it, or assign model.tokenizer")
        limit = self.config.max_tokens - 1
        if max_tokens is not None and max_tokens not in range(1, limit + 1):
            raise ValueError(f"max_tokens must be a whole number between 1 and {limit}, got {max_tokens}")
        image = self.image_tokens(pixel_values)
        state = _DecoderState(self, self._recall(image, belief))
        return generate(state.step, len(pixel_values), bos=self.tokenizer.bos, eos=self.tokenizer.eos,
                        max_tokens=max_tokens or min(48, limit), num_beams=num_beams, top_p=top_p,
                        temperature=temperature, generator=generator, device=pixel_values.device)

    def caption(self, pixel_values: Tensor, **how) -> list[str]:
        """Captions of B images: greedy, `num_beams=3` for beam search, `top_p=0.9` for nucleus sampling."""
        return [self.tokenizer.decode(row.tolist()) for row in self.caption_ids(pixel_values, **how)]

    def _recall(self, image: Encoded, belief: Belief | None) -> Tensor:
        if belief is None or self.memory is None:
            return self.context(image)
        return self.context(image, self.memory.read(belief, image.feature))

    def parameter_counts(self) -> dict[str, int]:
        """Parameters by part, the tied embedding once."""
        return {name: sum(p.numel() for p in child.parameters(recurse=True)) for name, child in self.named_children()
                if any(True for _ in child.parameters())}

    def outside_tower(self) -> int:
        """Parameters outside the vision tower."""
        return sum(p.numel() for p in self.parameters()) - sum(p.numel() for p in self.vision.parameters())


class _DecoderState:
    """What `generate` carries from token to token: keys of the context, cached keys of the tokens so far."""

    def __init__(self, model: BitGen, context: Tensor):
        self.model = model
        self.contexts = model.decoder.contexts(context)
        self.caches: list[list] = [[] for _ in model.decoder.blocks]

    def step(self, tokens: Tensor, cache: "_DecoderState | None", position: int) -> tuple[Tensor, "_DecoderState"]:
        """tokens (B,) at `position` -> logits (B, V) float32 of the next token, and this state."""
        embedded = self.model.text.embedding(tokens[:, None])
        hidden = self.model.decoder(embedded, self.contexts, self.caches)[:, -1]
        return F.linear(hidden, self.model.text.embedding.weight).float(), self

    def reorder(self, index: Tensor) -> "_DecoderState":
        """Row i continues what row index[i] was."""
        self.contexts = [tuple(x[index] for x in pair) for pair in self.contexts]
        self.caches = [[x[index] for x in cache] for cache in self.caches]
        return self


def _check_pairs(where: str, pixel_values: Tensor, input_ids: Tensor) -> None:
    """Raise `ValueError` where there is not a caption for each image."""
    if len(pixel_values) != len(input_ids):
        raise ValueError(f"{where}: image i goes with caption i, but there are {len(pixel_values)} images and "
                         f"{len(input_ids)} captions")


def grid_positions(patches: int, width: int) -> Tensor:
    """Where each patch of a square grid lies (P, D): waves along rows and columns, to be learned on from.

    For fusion and decoder alone: a tower trained by contrast for minutes forgets where things are, and words of place
    need it. Their deviation, 0.58, is that of a linear layer's answer to normed tokens at the start; the waves go from
    half a period over the grid to four periods.
    """
    side = math.isqrt(patches)
    count = -(-width // 4)  # not linspace: after transformers has loaded a tower it forgets a `torch.device` context
    rates = math.pi / side * 2 ** (torch.arange(count) * 3 / max(count - 1, 1))                   # (D/4,)
    angles = torch.arange(side)[:, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], -1)                                           # (side, D/2)
    table = torch.cat([waves.repeat_interleave(side, 0), waves.repeat(side, 1)], -1)[:, :width]   # row, column
    table = table - table.mean(0)
    return table / table.std().clamp(min=1e-6) * 3 ** -0.5


def unit(x: Tensor) -> Tensor:
    """x (…, D) at unit length, float32."""
    return F.normalize(x.float(), dim=-1, eps=1e-6)


def pair_key(image_feature: Tensor, text_feature: Tensor) -> Tensor:
    """Key (…, D) of an image with words: between the two features, so that either alone finds it.

    Words count as much as they agree with the image (their cosine): those that say what it does not show would lead
    away from it, to the images that they do describe, so the key of such a fact is the image's own.
    """
    agreement = (image_feature * text_feature).sum(-1, keepdim=True).clamp(min=0)
    return unit(image_feature + agreement * text_feature)
