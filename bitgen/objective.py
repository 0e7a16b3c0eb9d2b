"""The objective: the one place where model, negatives and losses meet.

B images and N captions of this process, B', N' over all processes, Q queued pairs, M fused pairs, D width,
E episodes of n images. `Objective` computes; nothing is written to queue, momentum copy or memory before
`after_step`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitgen.chunked import encode_in_chunks
from bitgen.config import LossConfig
from bitgen.data import Batch
from bitgen.losses import contrastive_chance, contrastive_loss, matching_loss, text_loss
from bitgen.memory import Belief, Reading, evidence, kl_divergence, quality, read
from bitgen.model import MAX_LOGIT_SCALE, BitGen, Encoded, pair_key
from bitgen.negatives import FeatureQueue, MomentumCopy, hard_negatives
from bitgen.processes import gathered, offset, summed
from bitgen.ranges import check_ranges


class Encoders(NamedTuple):
    """What training calls of a model."""

    image: Callable[..., Encoded]
    """`BitGen.image_tokens`."""
    text: Callable[..., Encoded]
    """`BitGen.text_tokens`."""


class Keys(NamedTuple):
    """What a batch brings to the queue: image (B, D) and text (B, D) of each image's first caption. No gradient."""

    image: Tensor
    text: Tensor


class Pairs(NamedTuple):
    """Who belongs to whom among the B' images and N' captions of all processes."""

    owner: Tensor
    """(N',): image of each caption."""
    mine: Tensor
    """(N', B') bool: whether the image is the caption's own."""
    same: Tensor
    """(N', B') bool: whether they may not be each other's negatives."""
    rows: slice
    """This process's captions."""
    columns: slice
    """This process's images."""


class Candidates(NamedTuple):
    """What hard negatives are drawn from: logits and which are negatives."""

    similarity: Tensor
    """(N, B): captions and images of the batch."""
    allowed: Tensor
    """(N, B) bool."""
    queued_similarity: Tensor | None = None
    """(B, Q): images of the batch and captions of the queue, where it takes part."""
    queued_allowed: Tensor | None = None
    """(B, Q) bool."""


class Written(NamedTuple):
    """What the episodes of a batch wrote to their copies of the prior. No gradient."""

    key: Tensor
    """(B, D): where the memory is addressed for each image with its first caption."""
    address: Tensor
    """(B, K): its weights on the slots, zeros for an image that was left out."""
    added: Belief
    """The sums that all episodes wrote."""


class Pending(NamedTuple):
    """What a batch leaves to be written after the step."""

    keys: Keys | None
    """For the queue; None where it takes no part."""
    written: Written | None
    """For the persistent memory; None for a model without one."""


class Objective(nn.Module):
    """ITC with queue, ITM with hard negatives, text reconstruction, memory KL."""

    def __init__(self, model: BitGen, config: LossConfig):
        super().__init__()
        check_ranges(config, "loss")
        self.model, self.config = model, config
        self.momentum = MomentumCopy(model, config.momentum) if config.momentum else None
        size = config.queue, model.config.hidden_size, model.config.max_tokens
        self.queue = FeatureQueue(*size) if config.queue else None
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.compiled: dict[BitGen, Encoders] = {}

    def models(self) -> list[BitGen]:
        """The model, and its momentum copy where there is one."""
        return [self.model] if self.momentum is None else [self.model, self.momentum.model]

    def compile_encoders(self) -> None:
        """Compile the encoders for training, the tower's blocks in their lean form (`bitgen.lean`). On a GPU it takes
        half a minute, which long runs get back many times over; the models' own methods stay as they are."""
        for model in self.models():
            model.vision.make_lean()
            self.compiled[model] = Encoders(torch.compile(model.image_tokens), torch.compile(model.text_tokens))

    def encoders(self, model: BitGen) -> Encoders:
        """Those of one of `models()`, compiled if they were."""
        return self.compiled.get(model) or Encoders(model.image_tokens, model.text_tokens)

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor], Pending]:
        """A batch with normalised pixels -> losses (with `total`), report (no gradient), and what to write later."""
        chunk, full = self.config.chunk, batch
        batch = batch.first_captions(self.config.contrast_captions) if self.training else batch
        encode = self.encoders(self.model)
        image = encode_in_chunks(encode.image, chunk, batch.pixel_values)
        text = encode_in_chunks(encode.text, chunk, batch.input_ids, batch.attention_mask)
        queued = self.queue is not None and self.training and int(self.steps) >= self.config.queue_start
        return self.score(image, text, batch, self._keys(batch, image, text) if queued else None, full)

    def score(self, image: Encoded, text: Encoded, batch: Batch, keys: Keys | None = None,
              full: Batch | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor], Pending]:
        """The same from B images and N captions that are encoded already; without `keys` the queue takes no part.

        full: the batch with all captions that the decoder is taught, where those are more than the N.
        """
        losses, report = {}, {}
        full = full or batch
        first = batch.firsts()
        with torch.autocast(image.feature.device.type, enabled=False):
            losses["itc"], candidates = self._contrast(image.feature, text.feature, keys, batch, first, report)
        code = None
        if self.config.itm or self.model.memory is not None:
            code = self._match(image, text, batch, first, candidates, losses, report)
        other = full.caption_ids != batch.caption_ids[first][full.image_index]       # (N,) than the one written
        several = torch.zeros_like(first).index_add(0, full.image_index, other.long()) > 0
        reading, written = None, None
        if self.model.memory is not None:
            reading, written = self._episode(image.feature, text.feature[first], code, several, losses, report)
        if self.config.text:
            self._reconstruct(image, reading, full, other, losses, report)
        losses["total"] = sum(getattr(self.config, name) * loss for name, loss in losses.items())
        return losses, {name: value.detach() for name, value in report.items()}, Pending(keys, written)

    # The parts --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _keys(self, batch: Batch, image: Encoded, text: Encoded) -> Keys:
        """Features by the momentum copy (MoCo), or the online features (cross-batch memory, arXiv 1912.06798)."""
        first = batch.firsts()
        if self.momentum is None or self.config.queue_keys == "online":
            return Keys(image.feature.detach(), text.feature[first].detach())
        encode, chunk = self.encoders(self.momentum.model), self.config.chunk
        image = encode_in_chunks(encode.image, chunk, batch.pixel_values)
        text = encode_in_chunks(encode.text, chunk, batch.input_ids[first], batch.attention_mask[first])
        return Keys(image.feature, text.feature)

    def _contrast(self, image, text, keys, batch, first, report) -> tuple[Tensor, Candidates]:
        """ITC over the batch and, with `keys`, over keys and queue; what hard negatives are drawn from.

        The two are separate softmaxes. In a single one the positive would be an online feature among negatives of
        another encoder or time, and telling those apart would be a short-cut.
        """
        pairs, scale = self._pairs(batch, image, text), self.model.scale()
        rows, columns = pairs.rows, pairs.columns
        t2i, i2t = scale * text @ self._joined(image).T, scale * image @ self._joined(text).T       # (N, B'), (B, N')
        candidates = Candidates(t2i[:, columns].detach(), ~pairs.same[rows, columns])
        terms = [(t2i, pairs.mine[rows], ~pairs.same[rows], len(text)),
                 (i2t, pairs.mine.T[columns], ~pairs.same.T[columns], len(text))]
        if keys is not None:
            longer, candidates = self._queued(scale * image, scale * text, keys, batch, first, pairs, candidates)
            terms += longer
        with torch.no_grad():
            report["itc_chance"] = sum(contrastive_chance(*masks) for _, *masks, _ in terms) / len(terms)
            report["t2i"] = (t2i.argmax(1) == pairs.owner[rows]).float().mean()
            found = pairs.owner[i2t.argmax(1)] - columns.start
            report["i2t"] = (found == torch.arange(len(image), device=image.device)).float().mean()
            report["t2i_chance"] = report["i2t_chance"] = torch.full((), 1.0 / t2i.shape[1], device=image.device)
            report["logit_scale"] = scale
        each = [contrastive_loss(*term) for term in terms]
        report["itc_batch"] = (each[0] + each[1]) / 2                                # the doctor compares the two
        return sum(each) / len(each), candidates

    def _joined(self, x: Tensor) -> Tensor:
        """Rows of all processes where they train together; each evaluates alone."""
        return gathered(x) if self.training else x

    def _pairs(self, batch: Batch, image: Tensor, text: Tensor) -> Pairs:
        """Who belongs to whom among the images and captions of all processes."""
        image_ids, caption_ids = self._joined(batch.image_ids), self._joined(batch.caption_ids)
        there, here = (offset(len(x)) if self.training else 0 for x in (image, text))
        owner = self._joined(batch.image_index + there)
        mine = owner[:, None] == torch.arange(len(image_ids), device=image.device)
        equal = (caption_ids[:, None] == caption_ids).float() @ mine.float() > 0     # the text stands under the image
        return Pairs(owner, mine, (image_ids[owner][:, None] == image_ids) | equal,
                     slice(here, here + len(text)), slice(there, there + len(image)))

    def _queued(self, image, text, keys, batch, first, pairs, candidates) -> tuple[list[tuple], Candidates]:
        """The terms of ITC over keys and queue, of scaled features; and `candidates` with those of the queue.

        Telling old keys from new ones by how far the features have drifted since would be a short-cut: the queue holds
        keys less the mean of their batch, and here the mean of the present keys is added.
        """
        rows, columns = pairs.rows, pairs.columns
        old_images, old_texts, old_ids, old_captions = self.queue.held()
        pictures = batch.image_ids[:, None] == old_ids                               # (B, Q)
        words = batch.caption_ids[:, None] == old_captions                           # (N, Q)
        shown = pairs.mine[rows, columns].T.float() @ words.float() > 0              # (B, Q) text stands under image
        firsts = self._joined(first + rows.start)                                    # (B',) caption of each text key
        t2i_known = torch.cat([pairs.same[rows], words | pictures[batch.image_index]], 1)
        i2t_known = torch.cat([pairs.same[firsts].T[columns], shown | pictures], 1)
        new_images, new_texts = self._joined(keys.image), self._joined(keys.text)    # (B', D)
        t2i = text @ torch.cat([new_images, old_images + new_images.mean(0)]).T      # (N, B'+Q)
        i2t = image @ torch.cat([new_texts, old_texts + new_texts.mean(0)]).T        # (B, B'+Q)
        if len(old_ids):
            candidates = candidates._replace(queued_similarity=i2t[:, len(new_texts):].detach(),
                                             queued_allowed=~i2t_known[:, len(new_texts):])
        return [(t2i, _wider(pairs.mine[rows], t2i), ~t2i_known, len(text)),
                (i2t, _wider(pairs.mine[firsts].T[columns], i2t), ~i2t_known, len(image))], candidates

    def _match(self, image, text, batch, first, candidates, losses, report) -> Tensor:
        """ITM on each image's first caption, a hard negative image and a hard negative caption; codes (B, 2D).

        Where the queue takes part, the negative caption is one of the queue's thousands: those of a batch that the
        contrast has learned differ in what it sees already.
        """
        true = torch.arange(len(first), device=first.device)
        if not self.config.itm:
            return self.model.fusion(image.tokens, text.tokens, batch.attention_mask, (true, first))
        caption_rows, wrong_images = hard_negatives(candidates.similarity[first], candidates.allowed[first])
        tokens, mask = text.tokens, batch.attention_mask
        if candidates.queued_allowed is not None:
            tokens, mask, image_rows, wrong_captions = self._from_queue(tokens, mask, candidates)
        else:
            image_rows, wrong_captions = hard_negatives(candidates.similarity.T, candidates.allowed.T)
        images = torch.cat([true, wrong_images, image_rows])                          # (M,)
        captions = torch.cat([first, first[caption_rows], wrong_captions])
        code = self.model.fusion(image.tokens, tokens, mask, (images, captions))
        logits = self.model.match_head(code)
        matched = torch.arange(len(images), device=first.device) < len(first)
        losses["itm"] = matching_loss(logits, matched)
        report["itm_acc"] = (logits.argmax(1) == matched).float().mean()
        share = matched.float().mean()
        report["itm_acc_chance"] = torch.maximum(share, 1 - share)
        return code[: len(first)]

    def _from_queue(self, tokens, mask, candidates) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """tokens (N + r, L, D), mask (N + r, L): r captions of the queue, encoded anew, behind those of the batch; and
        which images (r,) they are hard negatives of, and their rows (r,)."""
        rows, places = hard_negatives(candidates.queued_similarity, candidates.queued_allowed)
        ids, real = self.queue.captions(places, least=mask.shape[1])
        with torch.no_grad():  # as good for matching, and a third of the cost: the right captions teach the encoder
            drawn = encode_in_chunks(self.encoders(self.model).text, self.config.chunk, ids, real).tokens
        wider = ids.shape[1] - mask.shape[1]
        joined = torch.cat([F.pad(tokens, (0, 0, 0, wider)), drawn]), torch.cat([F.pad(mask, (0, wider)), real])
        return *joined, rows, len(tokens) + torch.arange(len(rows), device=rows.device)

    def _episode(self, image, text, code, several, losses, report) -> tuple[Reading, Written]:
        """Write (image, first caption) of a share of the images to copies of the prior, read with images alone (B, D).

        Episodes are smaller than the number of slots: K slots tell at most K facts apart.
        """
        memory = self.model.memory
        with torch.autocast(image.device.type, enabled=False):
            value = self.model.value(code.float())
            spread = lambda x: _episodes(x, self.config.episode)                      # (B, …) -> (E, n, …)  # noqa: E731
            kept = several & (torch.rand(len(image), device=image.device) >= self.config.left_out)
            weight, values = spread(kept.float()), spread(value)
            key = pair_key(image, text).detach()
            address = memory.address(key)
            added = evidence(spread(address), values, memory.noise, weight)
            prior = memory.prior()
            belief = prior + added
            reading = read(belief, memory.address(spread(image.detach())), memory.noise)
            losses["memory_kl"] = kl_divergence(belief, prior).mean()
            report["memory_quality"] = quality(value[kept].detach(), reading.mean.flatten(0, 1)[: len(image)][kept])
        flat = Reading(*(x.flatten(0, 1)[: len(image)] for x in reading))
        total = Belief(*(x.detach().sum(0) for x in added))
        return flat, Written(key, address.detach() * kept[:, None], total)

    def _reconstruct(self, image, reading, batch, other, losses, report) -> None:
        """The decoder on every caption, real tokens only.

        Captions `other` (N,) than the one that was written have what the memory returned; that one would be read back,
        and has an empty reading.
        """
        empty = self.model.context(image._replace(feature=image.feature.detach()))    # (B, S, D)
        context = torch.cat([empty, self.model.context(image, reading)])
        rows = batch.image_index + len(empty) * other                                 # (N,) empty or full reading
        states, targets = self.model.decode_real(batch.input_ids, batch.attention_mask, context, rows)
        losses["text"], report["text_nll"] = text_loss(states, self.model.text.embedding.weight, targets,
                                                       self.config.label_smoothing)

    # After the step ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def after_step(self, *done: tuple[Batch, Pending]) -> None:
        """All writes of a training step, of one batch or of those it accumulated: the clamp, the queue, the persistent
        memory, the momentum copy. The last two forget a little each time: once a step, however it is split."""
        # A hair under the forward's own clamp: at or above it there is no gradient to come down by.
        self.model.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE) - 1e-5)
        for batch, pending in done:
            if pending.keys is not None:
                self._enqueue(batch, pending.keys)
        written = [pending.written for _, pending in done if pending.written is not None]
        if written:
            added = Belief(*(summed(sum(parts)) for parts in zip(*(each.added for each in written))))
            key, address = (torch.cat([gathered(getattr(each, name)) for each in written])
                            for name in ("key", "address"))
            self.model.memory.remember(key, address, added)
        if self.momentum is not None:
            self.momentum.update(self.model)
        self.steps.add_(len(done))

    def _enqueue(self, batch: Batch, keys: Keys) -> None:
        first = batch.firsts()
        centred = [x - x.mean(0) for x in map(gathered, keys)]
        ids, mask = batch.input_ids[first], batch.attention_mask[first]
        ids = F.pad(ids, (0, self.queue.input_ids.shape[1] - ids.shape[1]))  # equally wide in all processes
        rest = batch.image_ids, batch.caption_ids[first], ids, mask.sum(1)
        self.queue.enqueue(*centred, *map(gathered, rest))


def _wider(mask: Tensor, like: Tensor) -> Tensor:
    """mask (R, C) with false columns added up to the width of `like`."""
    return F.pad(mask, (0, like.shape[1] - mask.shape[1]))


def _episodes(x: Tensor, size: int) -> Tensor:
    """(B, …) -> (E, n, …) with n <= size, as even as possible, zeros behind the end."""
    count = -(-len(x) // size)
    length = -(-len(x) // count)
    padding = x.new_zeros(count * length - len(x), *x.shape[1:])
    return torch.cat([x, padding]).unflatten(0, (count, length))
