"""Where token embeddings can begin: near those of the tokens that stand under the same images.

I images, V vocabulary, D width.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from bitgen.tokenizer import Tokenizer

IMAGES = 20000
"""Images whose captions are counted at most: enough for words that a run can learn, and memory stays bounded."""


def presence(captions: Sequence[Sequence[str]], tokenizer: Tokenizer, max_tokens: int) -> Tensor:
    """1 where a token stands under an image, as a sparse (I, V) tensor."""
    ids, mask = tokenizer.encode([text for texts in captions for text in texts], max_tokens)
    owner = torch.arange(len(captions)).repeat_interleave(torch.tensor([len(texts) for texts in captions]))
    vocabulary = tokenizer.vocab_size
    pairs = (owner[:, None] * vocabulary + ids)[mask].unique()                       # sorted by image, then by token
    return _sparse(torch.stack([pairs // vocabulary, pairs % vocabulary]), torch.ones(len(pairs)),
                   (len(captions), vocabulary))


def positive_pmi(together: Tensor) -> Tensor:
    """Positive pointwise mutual information of symmetric co-occurrence counts, sparse (V, V), in nats.

    `max(0, log(p(a, b) / (p(a) p(b))))` (Levy & Goldberg 2014, "Neural word embedding as implicit matrix
    factorization", section 3.2).
    """
    together = together.coalesce()
    (one, other), values = together.indices(), together.values()
    single = torch.zeros(len(together)).index_add_(0, one, values)
    information = (values * (values.sum() / single[one]) / single[other]).log()
    kept = information > 0
    return _sparse(together.indices()[:, kept], information[kept], together.shape)


def token_embedding(captions: Sequence[Sequence[str]], tokenizer: Tokenizer, width: int, max_tokens: int) -> Tensor:
    """(V, D) of root mean square 1: tokens with company alike are close; zeros for tokens that never occur.

    The best factors of the positive PMI, each by the square root of its singular value (Levy & Goldberg 2014, section
    3.3), turned at random so that all D numbers vary alike. `captions`: those of each image, which count as one text:
    what two people say of one picture is company. Draws from torch's random numbers.
    """
    picked = torch.randperm(len(captions))[:IMAGES].sort().values.tolist()
    found = presence([captions[i] for i in picked], tokenizer, max_tokens)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        information = positive_pmi(torch.sparse.mm(found.t(), found))
    factors, strengths, _ = torch.svd_lowrank(information, q=min(width, *information.shape), niter=4)
    vectors = torch.nn.functional.pad(factors * strengths.sqrt(), (0, width - factors.shape[1]))
    vectors = vectors @ torch.linalg.qr(torch.randn(width, width)).Q
    known = torch.sparse.sum(information, 1).to_dense() > 0
    vectors = vectors * known[:, None]
    return vectors / (vectors.square().sum() / max(int(known.sum()) * width, 1)).sqrt().clamp(min=1e-6)


def _sparse(indices: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=True, is_coalesced=True)
