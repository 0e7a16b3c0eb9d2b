"""Inside the network: which loss reaches which part, how fast weights move, what units do, how the loss lies.

B images, N captions. Nothing here changes the model, its gradients or the random state. The modules `attention`,
`geometry`, `probes`, `slots` and `mistakes` hold the numbers of attention, features, memory and retrieval.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bitgen.config import LossConfig
from bitgen.data import Batch, Collator
from bitgen.images import normalise
from bitgen.model import BitGen
from bitgen.objective import Objective
from bitgen.optimizer import update_ratios

DEAD = 1e-3  # a unit whose outputs deviate less than this, where its layer's deviate by 1, is dead


def batch_of(dataset, processor, images: int = 32, captions: int = 2, seed: int = 0) -> Batch:
    """The first readable `images` of a data set with up to `captions` of each, normalised: a batch for this module."""
    places = [i for i in range(len(dataset)) if i not in dataset.bad][:images]
    if len(places) < 2:
        raise ValueError(f"a batch needs at least 2 readable images; the data set has {len(places)}")
    size, vision = processor.vision.image_size, processor.vision
    batch = Collator(dataset, processor.tokenizer, size, captions, seed, processor.max_tokens)(places, 0)
    return dataclasses.replace(batch, pixel_values=normalise(batch.pixel_values, vision.mean, vision.std))


@contextmanager
def deterministic_eval(model: nn.Module) -> Iterator[None]:
    """In evaluation mode and with a fixed seed; mode and random state are put back."""
    training = model.training
    model.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            yield
        finally:
            model.train(training)


# Gradients and updates ------------------------------------------------------------------------------------


def gradient_table(model: BitGen, batch: Batch, config: LossConfig) -> dict[str, dict[str, float]]:
    """part -> loss -> norm of the gradient of that weighted loss in that part, and of their sum as `total`.

    A zero says that the loss does not reach the part. In-batch negatives only: the queue is no part of a model.
    """
    objective = Objective(model, dataclasses.replace(config, queue=0, momentum=0.0))
    parts = {name: [p for p in child.parameters() if p.requires_grad] for name, child in model.named_children()}
    parts = {name: parameters for name, parameters in parts.items() if parameters}
    table: dict[str, dict[str, float]] = {name: {} for name in parts}
    flat = [p for parameters in parts.values() for p in parameters]
    with deterministic_eval(objective):
        losses, _, _ = objective(batch)
        for loss, value in losses.items():
            weight = getattr(config, loss, 1.0)
            grads = torch.autograd.grad(weight * value, flat, retain_graph=True, allow_unused=True)
            squares = [0.0 if g is None else g.float().square().sum().item() for g in grads]
            taken = iter(squares)
            for name, parameters in parts.items():
                table[name][loss] = math.sqrt(sum(next(taken) for _ in parameters))
    return table


def checkpoint_update_ratios(model: BitGen, folder: str | Path) -> dict[str, float]:
    """`update_ratios` of a checkpoint folder whose weights `model` holds.

    Empty without the file that resuming needs, and where that is of another model or version.
    """
    file = next(Path(folder).glob("checkpoint-*.pt"), None)
    if file is None:
        return {}
    saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)["optimizer"]
    parameters = dict(model.named_parameters())
    names = {name for group in saved["param_groups"] for name in group["params"]} | saved["state"].keys()
    if not names <= parameters.keys():
        return {}
    # Of a weight's moments all but the count of its steps are as large as it is.
    if any(all(parameters[name].shape != moment.shape for moment in moments.values())
           for name, moments in saved["state"].items()):
        return {}
    groups = [group | {"params": [parameters[name] for name in group["params"]]} for group in saved["param_groups"]]
    state = {parameters[name]: moments for name, moments in saved["state"].items()}
    return update_ratios(list(model.named_parameters()), groups, state)


# Activations --------------------------------------------------------------------------------------------


class Activation(NamedTuple):
    """Outputs of one layer over all tokens that count."""

    name: str
    deviation: float
    """Root mean square over units and tokens."""
    dead: float
    """Share of units that say the same whatever comes in."""
    largest: float
    """Largest magnitude, in deviations: above 50 bf16 and 8 bits lose the rest."""


@torch.no_grad()
def activations(model: BitGen, batch: Batch) -> list[Activation]:
    """The blocks of tower, text encoder and decoder, and the hidden units of every feed-forward layer, in the order
    they run."""
    found: list[Activation] = []
    mask, lean = batch.attention_mask, model.vision.lean

    def look(name: str, states: Tensor):
        words = states.shape[:2] == mask.shape and not name.startswith("vision")
        found.append(_activation(name, (states[mask] if words else states).flatten(0, -2).float()))

    def leaving(name: str):
        return lambda _, __, output: look(name, output[0] if isinstance(output, tuple) else output)

    def entering(name: str):
        return lambda _, inputs: look(name, inputs[0])

    blocks, products = _layers(model)
    hooks = [block.register_forward_hook(leaving(name)) for name, block in blocks.items()]
    hooks += [product.register_forward_pre_hook(entering(name)) for name, product in products.items()]
    try:
        model.vision.lean = False  # lean computing takes a block's weights and calls nothing that could be watched
        with deterministic_eval(model):
            image, text = model.image_tokens(batch.pixel_values), model.text_tokens(batch.input_ids, mask)
            firsts = batch.firsts()
            mask = mask[firsts]
            model.fusion(image.tokens, text.tokens[firsts], mask)
            model.decode(batch.input_ids[firsts], model.context(image))
    finally:
        model.vision.lean = lean
        for hook in hooks:
            hook.remove()
    return found


def _layers(model: BitGen) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Name -> block, whose output is looked at; name -> last product of a feed-forward layer, which takes in its hidden
    units, whatever activation or gate they come from."""
    parts = {"vision": model.vision.stages()[1:-1], "text": model.text.blocks, "fusion": model.fusion.layers,
             "decoder": model.decoder.blocks}
    blocks = {f"{part} block {i}": block for part, layers in parts.items() if part != "fusion"
              for i, block in enumerate(layers)}
    hidden = {f"{part} hidden {i}": [m for m in block.modules() if isinstance(m, nn.Linear)][-1]
              for part, layers in parts.items() for i, block in enumerate(layers)}
    return blocks, hidden


def _activation(name: str, states: Tensor) -> Activation:
    """states (tokens, units). A single token cannot show that a unit always says the same."""
    scale = states.square().mean().sqrt().item()
    dead = 1.0 if not scale else 0.0 if len(states) < 2 else (states.std(0) < DEAD * scale).float().mean().item()
    return Activation(name, scale, dead, (states.abs().max() / scale).item() if scale else 0.0)


# Landscape ------------------------------------------------------------------------------------------------


@torch.no_grad()
def landscape(model: BitGen, batch: Batch, config: LossConfig, reach: float = 1.0, points: int = 11,
              directions: int = 2) -> tuple[list[float], dict[str, list[list[float]]]]:
    """Losses along random straight lines through the weights: distances, and for each loss a curve a direction.

    Each filter of a direction is as long as the weight's own, so distance 1 replaces a filter by one as long (filter
    normalisation, Li et al. 2018, arXiv 1712.09913); vectors and scalars stay. The losses are those of evaluation, on
    one batch; keys are the losses and `total`.
    """
    objective = Objective(model, dataclasses.replace(config, queue=0, momentum=0.0))
    distances = torch.linspace(-reach, reach, points).tolist()
    curves: dict[str, list[list[float]]] = {}
    moved = [p for p in model.parameters() if p.ndim > 1 and p.requires_grad]
    kept = [p.clone() for p in moved]
    generator = torch.Generator().manual_seed(0)
    for direction in range(directions):
        lines = [_filter_normalised(p, generator) for p in moved]
        try:
            for distance in distances:
                for parameter, weight, line in zip(moved, kept, lines):
                    parameter.copy_(weight + distance * line)
                with deterministic_eval(objective):
                    losses, _, _ = objective(batch)
                for name, value in losses.items():
                    curve = curves.setdefault(name, [[] for _ in range(directions)])
                    curve[direction].append(value.item())
        finally:
            for parameter, weight in zip(moved, kept):
                parameter.copy_(weight)
    return distances, curves


def _filter_normalised(weight: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(weight.shape, generator=generator).to(weight)
    lengths = [x.flatten(1).norm(dim=1).view(-1, *[1] * (weight.ndim - 1)) for x in (weight, noise)]
    return noise * lengths[0] / lengths[1].clamp(min=1e-12)
