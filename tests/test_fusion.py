"""Fusion: what meets what, how gates open, and that the cheap path over pairs changes no number."""

import pytest
import torch

from bitgen.config import ModelConfig
from bitgen.fusion import Fusion

D, B, N, L, P = 16, 3, 5, 6, 7


def fusion(gates=0.5, layers=2, seed=0, **changes):
    torch.manual_seed(seed)
    config = ModelConfig(hidden_size=D, num_heads=4, intermediate_size=32, fusion_layers=layers, **changes)
    module = Fusion(config).eval()
    for layer in module.layers if config.fusion_gates else ():
        layer.word_gate.data.fill_(gates)
        layer.patch_gate.data.fill_(gates)
    return module


def tokens(seed=1):
    """Images (B, 1+P, D), captions (N, L, D) and their mask; the last captions are padded."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(N, L, dtype=torch.bool)
    mask[2:, 4:] = False
    return torch.randn(B, 1 + P, D, generator=generator), torch.randn(N, L, D, generator=generator), mask


PAIRS = torch.tensor([0, 2, 1, 1, 0, 2, 2]), torch.tensor([4, 0, 0, 3, 1, 2, 0])


def slow(module, image, text, mask):
    """Each layer's formula on one pair (1+P, D), (L, D), all rows computed."""
    image, text, mask = image[None], text[None], mask[None, None, None]
    for layer in module.layers:
        words = text + layer.self_attention(layer.norm_self(text), mask=mask)
        seen = layer.words_to_patches(layer.norm_words(words), layer.words_to_patches.keys(image))
        read = layer.patches_to_words(layer.norm_patches(image), layer.patches_to_words.keys(text), mask)
        image, text = image + layer.patch_gate * read, words + layer.word_gate * seen
        text = text + layer.ffn(layer.norm_ffn(text))
    return torch.cat([module.norm_text(text[0, 0]), module.norm_image(image[0, 0])])


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_codes_of_pairs_equal_the_formula_a_pair_at_a_time(layers):
    module, (image, text, mask) = fusion(layers=layers), tokens()
    codes = module(image, text, mask, PAIRS)
    expected = torch.stack([slow(module, image[i], text[c], mask[c]) for i, c in zip(*PAIRS)])
    torch.testing.assert_close(codes, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_pairs_equal_gathering_first(layers):
    module, (image, text, mask) = fusion(layers=layers), tokens()
    images, captions = PAIRS
    torch.testing.assert_close(module(image, text, mask, PAIRS), module(image[images], text[captions], mask[captions]),
                               atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_asking_for_attention_changes_no_code(layers):
    module, (image, text, mask) = fusion(layers=layers), tokens()
    attentions = {"word_to_patch": [], "patch_to_word": []}
    codes = module(image, text, mask, PAIRS, attentions)
    torch.testing.assert_close(codes, module(image, text, mask, PAIRS), atol=1e-5, rtol=1e-5)
    assert [tuple(w.shape) for w in attentions["word_to_patch"]] == [(7, 4, L, 1 + P)] * layers
    assert [tuple(w.shape) for w in attentions["patch_to_word"]] == [(7, 4, 1 + P, L)] * layers
    for weights in attentions["word_to_patch"] + attentions["patch_to_word"]:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_closed_gates_leave_each_modality_to_itself():
    module, (image, text, mask) = fusion(gates=0.0), tokens()
    code, other_image, other_text = (module(i, t, mask[:B]) for i, t in (
        (image, text[:B]), (torch.randn_like(image), text[:B]), (image, torch.randn_like(text[:B]))))
    assert torch.equal(code[:, :D], other_image[:, :D]) and torch.equal(code[:, D:], other_text[:, D:])


def test_closed_gates_are_the_start_and_get_a_gradient():
    torch.manual_seed(0)
    module = Fusion(ModelConfig(hidden_size=D, num_heads=4, intermediate_size=32))
    image, text, mask = tokens()
    module(image, text[:B], mask[:B]).square().mul(torch.randn(2 * D)).sum().backward()
    for layer in module.layers:
        for gate in (layer.word_gate, layer.patch_gate):
            assert gate.item() == 0 and gate.grad.abs() > 1e-4


def test_open_gates_let_each_modality_see_the_other():
    module, (image, text, mask) = fusion(), tokens()
    code, other_image, other_text = (module(i, t, mask[:B]) for i, t in (
        (image, text[:B]), (torch.randn_like(image), text[:B]), (image, torch.randn_like(text[:B]))))
    assert ((code - other_image)[:, :D].abs().amax(1) > 1e-3).all()
    assert ((code - other_text)[:, D:].abs().amax(1) > 1e-3).all()


def test_gates_begin_where_they_are_told_to_and_are_learned_from_there():
    module = Fusion(ModelConfig(hidden_size=D, num_heads=4, intermediate_size=32, gate_start=1.0))
    gates = [p for name, p in module.named_parameters() if name.endswith("_gate")]
    assert len(gates) == 4 and all(g.item() == 1 and g.requires_grad for g in gates)


def test_without_gates_fusion_is_open_and_nothing_is_learned_about_it():
    module = fusion(fusion_gates=False)
    gates = [p for name, p in module.named_parameters() if name.endswith("_gate")]
    assert len(gates) == 4 and all(g.item() == 1 and not g.requires_grad for g in gates)


def test_padding_moves_no_code():
    module, (image, text, mask) = fusion(), tokens()
    code = module(image, text[2:5], mask[2:5])
    noisy = torch.where(mask[2:5, :, None], text[2:5], torch.randn(3, L, D) * 100)
    torch.testing.assert_close(module(image, noisy, mask[2:5]), code, atol=1e-5, rtol=0)
    torch.testing.assert_close(module(image, text[2:5, :4], mask[2:5, :4]), code, atol=1e-5, rtol=0)


def test_words_tell_apart_two_images_with_the_same_mean_patch():
    module, (image, text, mask) = fusion(), tokens()
    image = image[:1].clone()
    image[:, 1:] = image[:, 1:] - image[:, 1:].mean(1, keepdim=True)
    other = image.clone()
    other[:, 1:] = -image[:, 1:]  # the same CLS and mean, other patches
    torch.testing.assert_close(other.mean(1), image.mean(1), atol=1e-6, rtol=0)
    difference = module(image, text[:1], mask[:1]) - module(other, text[:1], mask[:1])
    assert difference[:, :D].abs().max() > 1e-2 and difference[:, D:].abs().max() > 1e-3
