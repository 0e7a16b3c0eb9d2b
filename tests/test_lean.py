"""The tower in fewer passes is the tower of transformers."""

import pytest
import torch
from conftest import tiny_batch
from objectives import objective
from small_runs import config
from torch import nn

from bitgen.config import VisionConfig
from bitgen.lean import PatchProduct, are_apart
from bitgen.trainer import Trainer
from bitgen.vision import VisionTower

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8}
FAMILIES = {"dinov2": {}, "dinov2_with_registers": {}, "vit": {"intermediate_size": 64},
            "deit": {"intermediate_size": 64}}


def tower(family, **more):
    torch.manual_seed(0)
    built = VisionTower(VisionConfig(tower={"model_type": family} | SMALL | FAMILIES[family] | more, image_size=32))
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.3)  # layer scales and biases too, so that each of them counts
    built.set_attention("float32", "cpu")
    return built


def answer(built):
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    tokens = built(pixels)
    return tokens, torch.autograd.grad(tokens.square().sum(), list(built.parameters()))


@pytest.mark.parametrize("family", FAMILIES)
def test_same_tokens_and_gradients_as_transformers(family):
    built = tower(family)
    tokens, gradients = answer(built)
    names = list(built.state_dict())
    built.make_lean()
    assert built.lean and isinstance(built.model.embeddings.patch_embeddings.projection, PatchProduct)
    lean_tokens, lean_gradients = answer(built)
    torch.testing.assert_close(lean_tokens, tokens, atol=1e-5, rtol=1e-5)
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    for ours, theirs in zip(lean_gradients, gradients):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert list(built.state_dict()) == names


@pytest.mark.parametrize("family, more", [
    ("dinov2", {"drop_path_rate": 0.1}), ("dinov2", {"use_swiglu_ffn": True}), ("vit", {"hidden_dropout_prob": 0.1}),
    ("vit", {"attention_probs_dropout_prob": 0.1})])
def test_blocks_that_do_more_run_as_transformers_wrote_them(family, more):
    built = tower(family, **more).eval()
    before = answer(built)[0]
    built.make_lean()
    assert not built.lean
    torch.testing.assert_close(answer(built)[0], before, atol=1e-5, rtol=1e-5)


def test_tokens_are_added_up_in_the_precision_of_the_products():
    built = tower("vit")
    seen = []
    built.stages()[2].layernorm_before.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    for lean in (False, True):
        if lean:
            built.make_lean()
        with torch.autocast("cpu", torch.bfloat16):
            built(torch.randn(1, 3, 32, 32))
    assert seen == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("setting", [{"stride": 4}, {"padding": 1}, {"groups": 3}, {"dilation": 2}])
def test_only_patches_side_by_side_are_a_product(setting):
    assert are_apart(nn.Conv2d(3, 6, 8, 8)) and not are_apart(nn.Conv2d(3, 6, 8, **{"stride": 8} | setting))


def test_compiled_encoders_train_alike_and_leave_the_models_own_methods(monkeypatch):
    """Traced whole, without a break; what the compiler's back end makes of it is the compiler's to test."""
    plain, compiled = objective(), objective()
    real, traced = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda f: traced.append(f) or real(f, backend="eager", fullgraph=True))
    compiled.compile_encoders()
    assert len(traced) == 4 and "image_tokens" not in vars(compiled.model)  # those of the momentum copy too
    results = []
    for task in (plain, compiled):
        torch.manual_seed(0)
        losses, *_ = task.train()(tiny_batch())
        losses["total"].backward()
        results.append((losses, task.model.project.weight.grad))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


def test_a_run_that_is_to_be_compiled_is(tmp_path, monkeypatch, quick_runs):
    """Its first batches are counted, and what is first called while torch counts operations is never compiled."""
    real, graphs = torch.compile, []
    backend = lambda graph, _: graphs.append(graph) or graph.forward  # noqa: E731
    monkeypatch.setattr(torch, "compile", lambda f: real(f, backend=backend))
    Trainer(config(tmp_path, "--compile", "True", "--optim.max-steps", "4")).fit()
    assert len(graphs) >= 2, "an encoder of images and one of captions"
