"""Encoding a batch that is larger than memory, in chunks whose activations are there one after the other.

A contrast wants many negatives, and so a large batch; what fills memory are the encoders' activations. Gradient caching
(Gao et al. 2021, arXiv 2101.06983) encodes all chunks without keeping activations, takes the loss over the features and
its gradient by them, and encodes each chunk once more to hand its share of that gradient on. That is what autograd does
with one checkpoint (Chen et al. 2016, arXiv 1604.06174) around each chunk: the gradients are those of the whole batch,
for one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bitgen.model import Encoded


def encode_in_chunks(encode: Callable[..., Encoded], size: int | None, *inputs: Tensor) -> Encoded:
    """`encode(*inputs)`, at most `size` rows at a time (None: all at once). Dropout draws anew for each chunk.

    inputs: tensors of the same number of rows; `encode` treats each row by itself.
    """
    if size is None or len(inputs[0]) <= size:
        return encode(*inputs)
    parts = [checkpoint(encode, *part, use_reentrant=False) if torch.is_grad_enabled() else encode(*part)
             for part in zip(*(x.split(size) for x in inputs), strict=True)]
    return Encoded(*map(torch.cat, zip(*parts, strict=True)))
