"""The optimizer: its groups and their rates, Muon, the schedule."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_model
from torch.optim import Muon

from bitgen.config import OptimConfig
from bitgen.optimizer import MuonAdamW, StackedMuon, orthogonal, parameter_groups, schedule


def test_no_decay_on_norms_biases_gates_embeddings_and_four_rates():
    model, rates = tiny_model(), {"vision": 0.0, "decoder": 2.0, "embedding": 3.0}
    config = OptimConfig(lr=1.0, **{f"{part}_lr": rate for part, rate in rates.items()}, weight_decay=0.02)
    groups = parameter_groups(model, config)
    names = {id(p): name for name, p in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            shared = name in ("text.embedding.weight", "patch_position.weight")
            assert group["lr"] == rates.get("embedding" if shared else name.split(".")[0], 1.0)
            plain = parameter.ndim < 2 or "embedding" in name or "position" in name or "prior_mean" in name
            assert (group["weight_decay"] == 0) == plain, name
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("pretrained", [None, "facebook/dinov2-small"])
def test_muon_moves_matrices_that_begin_at_random(pretrained):
    model = tiny_model()
    model.vision_config = replace(model.vision_config, pretrained=pretrained)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, OptimConfig(weight_decay=0.02, muon=True))
    moved = {names[id(p)] for group in groups if group["muon"] for p in group["params"]}
    assert {"text.blocks.0.ffn.0.weight", "fusion.layers.0.self_attention.out.weight", "itc_image.weight"} <= moved
    assert not [name for name in moved if "embedding" in name or "bias" in name or "norm_" in name or "gate" in name]
    assert any(name.startswith("vision.") for name in moved) == (pretrained is None)
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())
    assert not any(group["muon"] for group in parameter_groups(model, OptimConfig()))


def test_muon_of_many_matrices_at_once_is_that_of_torch(monkeypatch):
    monkeypatch.setattr("bitgen.precision._native", lambda kind: True)
    torch.manual_seed(0)
    shapes = [(8, 8), (16, 8), (8, 16), (8, 8), (2, 8), (16, 8)]
    ours, theirs = ([torch.nn.Parameter(torch.zeros(shape)) for shape in shapes] for _ in range(2))
    groups = [[{"params": some[:4], "lr": 1e-2}, {"params": some[4:], "lr": 3e-3}] for some in (ours, theirs)]
    how = {"weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = [StackedMuon(groups[0], **how), Muon(groups[1], **how)]
    for step in range(5):
        for one, other in zip(ours, theirs):
            one.grad = torch.randn_like(one) if step else None if one.shape == (2, 8) else torch.ones_like(one)
            other.grad = None if one.grad is None else one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=1e-5)                # both work in bf16
        assert one.abs().max() > 1e-3


def test_muon_makes_every_direction_of_a_step_alike():
    """What torch's five iterations leave of a gradient whose directions differ tenfold: all within 0.6 and 1.3."""
    model, config = tiny_model(), OptimConfig(lr=1e-3, muon=True)
    weight = model.text.blocks[0].ffn[0].weight                                              # (64, 32)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    left, _, right = torch.linalg.svd(weight.grad, full_matrices=False)
    weight.grad = left * torch.logspace(0, -1, 32) @ right
    before = weight.detach().clone()
    MuonAdamW(parameter_groups(model, config), config.betas, config.muon_momentum).step()
    values = torch.linalg.svdvals((before - weight.detach()) / (1e-3 * 0.2 * max(weight.shape) ** 0.5))
    assert 0.6 < values.min() and values.max() < 1.3


@pytest.mark.parametrize("native, dtype", [(True, torch.bfloat16), (False, torch.float32)])
def test_muon_multiplies_in_what_the_processor_is_quick_in(native, dtype, monkeypatch):
    """Emulated bf16 made a step of the demo ten times as long."""
    monkeypatch.setattr("bitgen.precision._native", lambda kind: native)
    torch.manual_seed(0)
    matrices = torch.randn(3, 8, 16)
    moved = orthogonal(matrices, (3.4445, -4.775, 2.0315), 5, 1e-7)
    assert moved.dtype == dtype
    values = torch.linalg.svdvals(moved.float())
    assert 0.6 < values.min() and values.max() < 1.3


def test_the_schedule_warms_up_and_falls_to_a_tenth():
    rates = [schedule(step, 1000, 100) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01) and max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (99, 100) and rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert max(schedule(step, 20, 1000) for step in range(20)) == 1.0   # a warm-up never eats a short run
