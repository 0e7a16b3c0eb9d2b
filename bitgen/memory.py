"""Episodic memory after Larimar (arXiv 2403.11901) and the Kanerva machine (arXiv 1804.01756), in information form.

The memory is a matrix of K slots x C numbers with a matrix-normal belief over it. A belief is a pair of sums, so
writing is addition, forgetting subtraction, merging the writes of several processes addition again:

    write(w, v):  P <- P + w'w / sigma^2        Q <- Q + w'v / sigma^2
    mean R = P^-1 Q, row covariance U = P^-1, read(w) = (w R, w U w' + sigma^2)

E episodes (any leading shape), n written pairs, K slots, D key width, C value width. All arithmetic is float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

USED = 0.1  # share of the uniform 1/K from which a slot counts as used


class Belief(NamedTuple):
    """What the memory holds, as sums: precision P (…, K, K) and information Q (…, K, C)."""

    precision: Tensor
    information: Tensor

    def __add__(self, other: Belief) -> Belief:
        return Belief(self.precision + other.precision, self.information + other.information)

    def __sub__(self, other: Belief) -> Belief:
        return Belief(self.precision - other.precision, self.information - other.information)

    def scaled(self, factor: float | Tensor) -> Belief:
        """Both sums times a number: a decay, or a count of equal writes."""
        return Belief(self.precision * factor, self.information * factor)

    def mean(self) -> Tensor:
        """R (…, K, C), by Cholesky."""
        return torch.cholesky_solve(self.information, _cholesky(self.precision))


class Reading(NamedTuple):
    """mean (…, n, C) and variance (…, n): of each of the C numbers, observation noise included."""

    mean: Tensor
    variance: Tensor


def evidence(address: Tensor, value: Tensor, noise: float, weight: Tensor | None = None) -> Belief:
    """The sums that writing these pairs adds: address (…, n, K), value (…, n, C), weight (…, n) of each pair."""
    with _exactly(address):
        address, value = address.float(), value.float()
        weighted = address if weight is None else address * weight[..., None]
        transposed = weighted.transpose(-2, -1) / noise**2
        return Belief(transposed @ address, transposed @ value)


def read(belief: Belief, address: Tensor, noise: float) -> Reading:
    """What the memory returns for address (…, n, K)."""
    with _exactly(address):
        address = address.float()
        factor = _cholesky(belief.precision)
        mean = address @ torch.cholesky_solve(belief.information, factor)
        half = torch.linalg.solve_triangular(factor, address.transpose(-2, -1), upper=False)   # (…, K, n)
        return Reading(mean, half.square().sum(-2) + noise**2)


def kl_divergence(posterior: Belief, prior: Belief) -> Tensor:
    """KL(posterior || prior) of the two matrix normals divided by K * C, shape (…,), in nats a number.

    Matrix normals with row covariances P^-1 and identity column covariance, closed form:
    2 KL = C [tr(P0 U) - K + ln|P| - ln|P0|] + tr((R - R0)' P0 (R - R0)).
    """
    slots, width = posterior.information.shape[-2:]
    with _exactly(posterior.precision):
        factor, prior_factor = _cholesky(posterior.precision), _cholesky(prior.precision)
        half = torch.linalg.solve_triangular(factor, prior_factor.expand_as(factor), upper=False)  # tr(P0 U) = |half|^2
        log_ratio = 2 * (_log_diagonal(factor) - _log_diagonal(prior_factor))
        shift = posterior.mean() - prior.mean()
        distance = (shift * (prior.precision @ shift)).sum((-2, -1))
        return (half.square().sum((-2, -1)) - slots + log_ratio) / (2 * slots) + distance / (2 * slots * width)


def _cholesky(precision: Tensor) -> Tensor:
    """Lower factor (…, K, K); NaN where there is none, so that training skips such a step instead of dying in it."""
    factor, failed = torch.linalg.cholesky_ex(precision)
    return factor.masked_fill(failed[..., None, None] != 0, torch.nan)


def _exactly(x: Tensor) -> torch.autocast:
    """Autocast off: sums and factors in bf16 would not be positive definite."""
    return torch.autocast(x.device.type, enabled=False)


def _log_diagonal(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


SHARPNESS = 1.0  # standard deviation of a slot's logit over keys to begin with: neither one slot nor all alike


class EpisodicMemory(nn.Module):
    """Addressing, prior and the persistent belief. Reading and writing are functions of a `Belief`.

    Buffers (saved): `written_*`, the decayed sums of what the last training steps wrote beyond the prior;
    `usage` (K,), the decayed mean address mass of each slot, which sums to one once something was written;
    `key_mean` (D,), the decayed mean key.
    """

    def __init__(self, key_size: int, value_size: int, slots: int, noise: float, decay: float):
        super().__init__()
        if slots < 1 or noise <= 0:
            raise ValueError(f"memory: needs slots >= 1 and noise > 0, got slots={slots}, noise={noise}")
        self.noise, self.decay = noise, decay
        self.addressing = nn.Linear(key_size, slots, bias=False)
        nn.init.normal_(self.addressing.weight, std=SHARPNESS)
        self.prior_mean = nn.Parameter(torch.randn(slots, value_size) * 0.02)
        self.log_prior_precision = nn.Parameter(torch.zeros(slots))
        self.register_buffer("written_precision", torch.zeros(slots, slots))
        self.register_buffer("written_information", torch.zeros(slots, value_size))
        self.register_buffer("usage", torch.zeros(slots))
        self.register_buffer("key_mean", torch.zeros(key_size))

    @property
    def slots(self) -> int:
        """K."""
        return len(self.prior_mean)

    def address(self, key: Tensor) -> Tensor:
        """Key (…, D) -> address (…, K) of unit length: softmax over slots of the key less the mean key.

        Contrastive features share a mean and vary in a dozen directions, so a linear address tells a dozen facts
        apart. The softmax of random projections is a positive feature map of a kernel (arXiv 2009.14794, lemma 1)
        and tells as many apart as there are slots; training goes on from there.
        """
        with torch.autocast(key.device.type, enabled=False):
            direction = F.normalize(key.float() - self.key_mean.float(), dim=-1, eps=1e-6)
            return F.normalize(F.linear(direction, self.addressing.weight.float()).softmax(-1), dim=-1)

    def prior(self) -> Belief:
        """The learned prior: P0 (K, K) diagonal, P0 R0 (K, C)."""
        precision = self.log_prior_precision.float().exp()
        return Belief(precision.diag(), precision[:, None] * self.prior_mean.float())

    def persistent(self) -> Belief:
        """The prior with what the last training steps wrote; for a model that the app saved, with its facts instead.

        Nothing reads it by default: give it as `belief` (`BitGen.caption`).
        """
        return self.prior() + Belief(self.written_precision.float(), self.written_information.float())

    def write(self, belief: Belief, key: Tensor, value: Tensor, weight: Tensor | None = None) -> Belief:
        """The belief after writing pairs key (…, n, D), value (…, n, C); order does not matter."""
        return belief + evidence(self.address(key), value, self.noise, weight)

    def forget(self, belief: Belief, key: Tensor, value: Tensor, weight: Tensor | None = None) -> Belief:
        """The belief before those pairs were written. Raises `ValueError` where they cannot have been."""
        left = belief - evidence(self.address(key), value, self.noise, weight)
        if torch.linalg.cholesky_ex(left.precision).info.any():
            raise ValueError("forget: more is taken away than was written; were these pairs ever written, once each?")
        return left

    def read(self, belief: Belief, key: Tensor) -> Reading:
        """Reading for key (…, n, D): mean (…, n, C), variance (…, n)."""
        return read(belief, self.address(key), self.noise)

    @torch.no_grad()
    def remember(self, key: Tensor, address: Tensor, added: Belief) -> None:
        """After a training step: decay the persistent sums and add an episode's, note mean key and slots used.

        key (n, D) of the images; address (n, K) of what was written, zeros for what was not; added: its evidence,
        summed over episodes.
        """
        self.key_mean.lerp_(key.mean(0), 1 - self.decay if self.key_mean.any() else 1.0)
        self.written_precision.mul_(self.decay).add_(added.precision)
        self.written_information.mul_(self.decay).add_(added.information)
        mass = F.normalize(F.normalize(address.abs(), p=1, dim=-1).sum(0), p=1, dim=0)           # (K,)
        if mass.any():
            self.usage.copy_(self.usage.lerp(mass, 1 - self.decay) if self.usage.any() else mass)


def used(usage: Tensor) -> Tensor:
    """Which slots are in use, (K,) bool: their mean address mass is at least a tenth of the uniform 1/K.

    usage (K,) sums to one; NumPy's arrays pass too.
    """
    return usage >= USED / len(usage)


def utilization(usage: Tensor) -> Tensor:
    """Share of slots that are `used`."""
    return used(usage).float().mean()


def address_perplexity(usage: Tensor) -> Tensor:
    """exp of the entropy of the mean address: between 1 (one slot) and K (all alike)."""
    return torch.special.entr(usage).sum().exp()


def quality(written: Tensor, returned: Tensor) -> Tensor:
    """Mean cosine of what was written and what was read back, each less its mean; 0 where nothing was written.

    Without the centring a memory that returns one average value for every key would look good, as values share a
    common part. written, returned (…, n, C); scalar between -1 and 1, about 0 for a memory that tells nothing.
    """
    centred = written - written.mean(-2, keepdim=True)
    cosine = F.cosine_similarity(centred, returned - returned.mean(-2, keepdim=True), dim=-1, eps=1e-6)
    return cosine.sum() / max(cosine.numel(), 1)
