"""Does the decoder see the words that it is to predict? Measured, whichever door they would come through."""

from __future__ import annotations

from dataclasses import replace

import torch

from bitgen.data import Batch
from bitgen.model import Encoded
from bitgen.objective import Objective


def shuffle_words(batch: Batch) -> tuple[Batch, float]:
    """The batch with the words of all its captions shuffled, and the least loss on them, in nats a token.

    Nothing that has not seen them predicts words in random order better than by their frequencies: the loss cannot
    fall under the entropy of these, less what the end of a caption, which may be foreseen, weighs in the mean.
    """
    mask = batch.attention_mask
    inner = mask.clone()
    inner[:, 0] = False
    inner[torch.arange(len(mask)), mask.sum(1) - 1] = False
    words = batch.input_ids[inner]                                                                  # (R,)
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(0)).to(words.device)
    ids = batch.input_ids.clone()
    ids[inner] = words[order]
    shares = words.unique(return_counts=True)[1] / max(len(words), 1)
    floor = torch.special.entr(shares).sum() * len(words) / (len(words) + len(mask))
    return replace(batch, input_ids=ids), float(floor)


@torch.no_grad()
def leak(objective: Objective, image: Encoded, batch: Batch) -> dict[str, float]:
    """`text_dealt`, the decoder's loss after `shuffle_words`, and `text_dealt_chance`, the least without a leak.

    image: of the batch's B images, encoded. Empty where the objective decodes nothing.
    """
    if not objective.config.text:
        return {}
    batch, floor = shuffle_words(batch)
    text = objective.model.text_tokens(batch.input_ids, batch.attention_mask)
    return {"text_dealt": float(objective.score(image, text, batch)[1]["text_nll"]), "text_dealt_chance": floor}
