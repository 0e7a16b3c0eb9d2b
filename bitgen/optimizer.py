"""The optimizer: its groups, AdamW or Muon beside it, the schedule of their rate; norms of gradients and of updates."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from bitgen.config import OptimConfig
from bitgen.precision import native_dtype

EMBEDDINGS = {"text.embedding.weight", "patch_position.weight"}
"""What `optim.embedding_lr` moves: the words that encoder and decoder share, and where patches are."""


def schedule(step: int, steps: int, warmup: int) -> float:
    """Factor on the peak rate: linear from 0 over `warmup` steps (at most a tenth of the run), cosine to a tenth."""
    warmup = min(warmup, max(steps // 10, 1))
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict]:
    """Groups of parameters: tower, decoder, embeddings and rest with their rates; `muon` marks what Muon is to move.

    No decay on norms, biases, gates, embeddings, positions, the scale and the memory's prior. With `config.muon` the
    matrices that decay are Muon's, except those of a pretrained tower, which is to stay near where it is.
    """
    rates = {"vision": config.vision_lr, "decoder": config.decoder_lr, "embedding": config.embedding_lr}
    rates = {part: config.lr if rate is None else rate for part, rate in rates.items()}
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    gentle = {"vision"} if model.vision_config.pretrained else set()
    groups: dict[tuple[bool, float, float], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "embedding" if name in EMBEDDINGS else name.split(".")[0]
            plain = parameter.ndim < 2 or id(parameter) in embeddings or "embeddings." in name or "prior_" in name
            muon = config.muon and parameter.ndim == 2 and not plain and part not in gentle
            key = muon, rates.get(part, config.lr), 0.0 if plain else config.weight_decay
            groups.setdefault(key, []).append(parameter)
    return [{"params": parameters, "lr": rate, "weight_decay": decay, "muon": muon}
            for (muon, rate, decay), parameters in sorted(groups.items())]


class StackedMuon(Muon):
    """torch's Muon with the matrices of one shape moved together: of small ones the calls cost, not the arithmetic.

    Always with Nesterov's momentum and steps of AdamW's length (`match_rms_adamw`).
    """

    @torch.no_grad()
    def step(self) -> None:
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            rate, momentum = float(group["lr"]), group["momentum"]
            moved = [p for p in group["params"] if p.grad is not None]
            if not moved:  # of a part whose loss is off
                continue
            grads = [p.grad for p in moved]
            averages = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in moved]
            torch._foreach_lerp_(averages, grads, 1 - momentum)
            towards = torch._foreach_lerp(grads, averages, momentum)
            torch._foreach_mul_(moved, 1 - rate * group["weight_decay"])
            for shape in sorted({p.shape for p in moved}):
                places = [i for i, p in enumerate(moved) if p.shape == shape]
                steps = orthogonal(torch.stack([towards[i] for i in places]), group["ns_coefficients"],
                                   group["ns_steps"], group["eps"])
                torch._foreach_add_([moved[i] for i in places], list(steps.to(moved[0].dtype)),
                                    alpha=-_muon_scale(shape) * rate)


def _muon_scale(shape: tuple[int, int]) -> float:
    """What makes an orthogonal step as long as one of AdamW (Liu et al. 2025, arXiv 2502.16982, eq. 4)."""
    return 0.2 * math.sqrt(max(shape))


def orthogonal(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Matrices (N, R, C), all their singular values brought near 1: Newton-Schulz as in `torch.optim.Muon`.

    In bf16 as there, and in float32 where the processor would only emulate it.
    """
    upright = matrices.shape[1] > matrices.shape[2]
    x = matrices.to(native_dtype(matrices.device))
    x = (x.mT if upright else x) / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    straight, cubic, quintic = coefficients
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic), x, beta=straight)
    return x.mT if upright else x


class MuonAdamW(Optimizer):
    """Muon for the groups marked `muon`, AdamW for the others: one optimizer to schedule, save and resume.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) makes every singular value of a matrix's step
    alike; its steps are scaled to the length of AdamW's (Liu et al. 2025, arXiv 2502.16982, eq. 4), so that one rate
    serves both.
    """

    def __init__(self, groups: list[dict], betas: tuple[float, float], momentum: float):
        others, matrices = ([group for group in groups if group["muon"] is muon] for muon in (False, True))
        self.parts = AdamW(others, betas=betas, fused=True), StackedMuon(
            matrices, momentum=momentum, adjust_lr_fn="match_rms_adamw")
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._link()

    def _link(self) -> None:
        """One state and one set of groups: what the parts see is what is scheduled and saved here."""
        for part in self.parts:
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group["muon"] is isinstance(part, Muon)]

    @torch.no_grad()
    def step(self) -> None:
        """Move every weight that has a gradient."""
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict) -> None:
        """Put back what `state_dict` gave. Raises `ValueError` for that of other groups."""
        super().load_state_dict(state_dict)
        self._link()


def named_state(optimizer: Optimizer, model: nn.Module) -> dict:
    """The optimizer's `state_dict` with weights by their names, where torch numbers them group by group.

    All in one order, whatever was loaded before: equal states are equal files.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state = {names[id(parameter)]: moments for parameter, moments in optimizer.state.items()}
    groups = [group | {"params": [names[id(parameter)] for parameter in group["params"]]}
              for group in optimizer.param_groups]
    return {"state": dict(sorted(state.items())), "param_groups": [dict(sorted(group.items())) for group in groups]}


def load_named_state(optimizer: Optimizer, model: nn.Module, saved: dict) -> None:
    """Undo `named_state`, whatever groups the weights stand in now; rates, decay and betas stay as they are here.

    Raises `ValueError` where it is of other weights.
    """
    moved = (parameter for group in optimizer.param_groups for parameter in group["params"])
    number = {id(parameter): i for i, parameter in enumerate(moved)}
    places = {name: number[id(p)] for name, p in model.named_parameters() if id(p) in number}
    if {name for group in saved["param_groups"] for name in group["params"]} != places.keys():
        raise ValueError("the optimizer's state is of other weights")
    optimizer.load_state_dict({"state": {places[name]: moments for name, moments in saved["state"].items()},
                               "param_groups": optimizer.state_dict()["param_groups"]})


@torch.no_grad()
def gradient_norms(model: nn.Module) -> dict[str, Tensor]:
    """`grad_norm/<part>`: norm of the gradient of each part, before clipping."""
    norms = {}
    for name, child in model.named_children():
        grads = [p.grad for p in child.parameters() if p.grad is not None]
        if grads:
            norms[f"grad_norm/{name}"] = torch.stack(torch._foreach_norm(grads)).norm()
    return norms


@torch.no_grad()
def update_ratios(named: list[tuple[str, Tensor]], groups: list[dict], state: dict) -> dict[str, float]:
    """Length of the last update over the length of the weights it changed, by part; about 1e-3 is usual.

    Worked out from the optimizer's own moments, so it needs no second copy of the weights. `named`: the model's
    parameters; groups: those of the optimizer, `params` being tensors; state: parameter -> its moments. Parts whose
    weights are all zero are left out.
    """
    part = {id(p): name.split(".")[0] for name, p in named}
    moved: dict[str, list[float]] = {}
    for group in groups:
        for parameter in group["params"]:
            moments = state.get(parameter)
            if moments:
                sums = moved.setdefault(part[id(parameter)], [0.0, 0.0])
                sums[0] += (group["lr"] ** 2 * _update(parameter, moments, group).float().square().sum()).item()
                sums[1] += parameter.float().square().sum().item()
    return {name: math.sqrt(up / weight) for name, (up, weight) in moved.items() if weight > 0}


def _update(parameter: Tensor, moments: dict, group: dict) -> Tensor:
    """What a learning rate of 1 would have taken from `parameter`.

    AdamW: Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2. Muon mixes the last gradient in once more, and that
    is gone; along its momentum alone it takes a step of nearly the same length.
    """
    decay = group["weight_decay"]
    if group.get("muon"):
        momentum = moments["momentum_buffer"][None]
        step = orthogonal(momentum, group["ns_coefficients"], group["ns_steps"], group["eps"])[0]
        return _muon_scale(parameter.shape) * step + decay * parameter
    one, two = group["betas"]
    step = float(moments["step"])
    mean, square = moments["exp_avg"] / (1 - one**step), moments["exp_avg_sq"] / (1 - two**step)
    return mean / (square.sqrt() + group["eps"]) + decay * parameter
