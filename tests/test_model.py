"""The model: features, matching, memory, writing captions, saving; and settings that cannot be."""

import copy
import json
import socket
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import TOWER, WORDS, tiny_batch, tiny_model
from safetensors.torch import load_file

from bitgen.config import ModelConfig, VisionConfig, load_preset
from bitgen.model import MAX_LOGIT_SCALE, BitGen, grid_positions, pair_key, unit
from bitgen.vision import VisionTower, resolve_tower


def inputs(**how):
    """pixel_values (B, 3, 32, 32), input_ids (B, L), attention_mask (B, L): image i with caption i."""
    batch = tiny_batch(captions=1, **how)
    return batch.pixel_values, batch.input_ids, batch.attention_mask


def speaking(model):
    model.tokenizer = SimpleNamespace(bos=0, eos=0, decode=lambda ids: " ".join(map(str, ids)))
    return model


# Features -------------------------------------------------------------------------------------------------


def test_features_are_float32_of_unit_length():
    model, (pixels, ids, mask) = tiny_model(), inputs()
    for feature in (model.encode_image(pixels), model.encode_text(ids, mask)):
        assert feature.shape == (6, 32) and feature.dtype == torch.float32
        torch.testing.assert_close(feature.norm(dim=1), torch.ones(6))


def test_captions_that_share_their_first_word_get_different_features():
    model = tiny_model()
    ids = torch.tensor([[0, 7, 8, 9, 0], [0, 7, 18, 19, 0], [0, 7, 9, 8, 0]])      # other words; the same, permuted
    feature = model.encode_text(ids, torch.ones_like(ids))
    assert (feature[0] - feature[1]).norm() > 1e-2 and (feature[0] - feature[2]).norm() > 1e-3


def test_the_first_token_alone_is_pooled_only_where_asked():
    ids, mask = torch.tensor([[0, 7, 8, 9, 0]]), torch.ones(1, 5, dtype=torch.bool)
    first, mean = tiny_model(pooling="first"), tiny_model()
    torch.testing.assert_close(first.itc_text.weight, mean.itc_text.weight)
    tokens = first.text(ids, mask)
    for model, pooled in ((first, tokens[:, 0]), (mean, tokens.mean(1))):
        torch.testing.assert_close(model.encode_text(ids, mask),
                                   torch.nn.functional.normalize(model.itc_text(pooled), dim=1))


def test_a_patch_that_is_shown_keeps_its_place():
    """Half of the patches hidden: what fusion and decoder are told of places is that of the patches shown."""
    model, pixels = tiny_model(), inputs()[0]
    model.vision.patch_dropout = 0.5
    with torch.no_grad():
        model.patch_position.weight.copy_(torch.arange(len(model.patch_position.weight))[:, None] * 1e6)
    torch.manual_seed(3)
    shown = model.train().vision.draw_patches(6, "cpu")
    torch.manual_seed(3)
    tokens = model.image_tokens(pixels).tokens
    assert tokens.shape[1] == 1 + shown.shape[1] < 1 + model.vision.patches
    torch.testing.assert_close((tokens[:, 1:, 0] / 1e6).round().long(), shown)


@pytest.mark.parametrize("patch_dropout", [-0.1, 1.0])
def test_a_share_of_hidden_patches_that_leaves_none_is_refused(patch_dropout):
    with pytest.raises(ValueError, match="vision.patch_dropout must be between 0 and 0.95"):
        BitGen(tiny_model().config, VisionConfig(image_size=32, tower=TOWER, patch_dropout=patch_dropout))


@pytest.mark.parametrize("ternary", [False, True])
def test_padding_moves_no_feature_and_no_match(ternary):
    model, (pixels, ids, mask) = tiny_model(ternary=ternary, gates=0.5), inputs()
    wider, wider_mask = (torch.nn.functional.pad(x, (0, 5)) for x in (ids, mask))
    torch.testing.assert_close(model.encode_text(wider, wider_mask), model.encode_text(ids, mask), atol=1e-5, rtol=0)
    torch.testing.assert_close(model.match(pixels, wider, wider_mask), model.match(pixels, ids, mask),
                               atol=1e-5, rtol=0)


@pytest.mark.parametrize("ternary", [False, True])
def test_a_sample_does_not_depend_on_its_batch_mates(ternary):
    model, (pixels, ids, mask) = tiny_model(ternary=ternary, gates=0.5), inputs()
    loud = pixels.clone()
    loud[1:] *= 50
    for pixel_values in (pixels, loud):
        torch.testing.assert_close(model.encode_image(pixel_values)[:1], model.encode_image(pixels[:1]),
                                   atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode_text(ids, mask)[:1], model.encode_text(ids[:1], mask[:1]),
                               atol=1e-5, rtol=0)
    torch.testing.assert_close(model.match(pixels, ids, mask)[:1], model.match(pixels[:1], ids[:1], mask[:1]),
                               atol=1e-5, rtol=0)


@pytest.mark.parametrize("ternary", [False, True])
def test_training_and_evaluation_compute_the_same_function(ternary):
    model, (pixels, ids, mask) = tiny_model(ternary=ternary, gates=0.5), inputs()
    outputs = [[model.encode_image(pixels), model.encode_text(ids, mask), model.match(pixels, ids, mask),
                model.text_logits(pixels, ids)] for model in (model.train(), model.eval())]
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def test_under_bf16_autocast_features_scale_and_logits_are_float32():
    model, (pixels, ids, mask) = tiny_model(gates=0.5), inputs()
    exact = model.encode_image(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        image, text = model.encode_image(pixels), model.encode_text(ids, mask)
        outputs = [image, text, model.scale(), model.match(pixels, ids, mask), model.text_logits(pixels, ids)]
    assert {x.dtype for x in outputs} == {torch.float32}
    torch.testing.assert_close(image.norm(dim=1), torch.ones(6))
    assert (image * exact).sum(1).min() > 0.999


def test_features_of_constant_inputs_are_finite_with_finite_gradients():
    model = tiny_model()
    feature = model.encode_image(torch.zeros(2, 3, 32, 32)) + model.encode_text(torch.zeros(2, 4, dtype=torch.int64),
                                                                                torch.ones(2, 4, dtype=torch.bool))
    feature.sum().backward()
    assert feature.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_in_another_precision_does_all_that_it_did(dtype):
    model, (pixels, ids, mask) = speaking(tiny_model(gates=0.5)), inputs()
    other = speaking(copy.deepcopy(model).to(dtype))
    with torch.no_grad():
        for exact, found in ((model.encode_image(pixels), other.encode_image(pixels.to(dtype))),
                             (model.encode_text(ids, mask), other.encode_text(ids, mask)),
                             (model.match(pixels, ids, mask), other.match(pixels.to(dtype), ids, mask))):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, exact, atol=0.02, rtol=0)
        belief = other.remember(pixels.to(dtype), ids, mask)
        assert {x.dtype for x in belief} == {torch.float32}
        for how in ({}, {"belief": belief}, {"belief": other.memory.persistent()}, {"num_beams": 2}):
            assert len(other.caption(pixels.to(dtype), **how)) == 6
        torch.testing.assert_close(other.text_logits(pixels.to(dtype), ids, belief),
                                   model.text_logits(pixels, ids, belief), atol=0.05, rtol=0)


@pytest.mark.parametrize("logit, scale", [(0.0, 1.0), (2.659, 14.28), (30.0, MAX_LOGIT_SCALE)])
def test_logit_scale_starts_at_one_over_the_temperature_and_stops_at_100(logit, scale):
    model = tiny_model(temperature=0.07)
    assert model.scale().item() == pytest.approx(1 / 0.07, rel=1e-5)
    model.logit_scale.data.fill_(logit)
    assert model.scale().item() == pytest.approx(scale, rel=1e-3)


def test_no_images_and_no_captions_give_none():
    model, parts = speaking(tiny_model()), [x[:0] for x in inputs()]
    assert model.encode_image(parts[0]).shape == model.encode_text(*parts[1:]).shape == (0, 32)
    assert len(model.match(*parts)) == 0 and model.caption(parts[0]) == model.caption(parts[0], num_beams=2) == []
    assert all(torch.equal(*pair) for pair in zip(model.remember(*parts), model.memory.prior()))


# Matching -------------------------------------------------------------------------------------------------


def test_match_is_a_probability_of_each_pair_and_looks_at_both():
    model, (pixels, ids, mask) = tiny_model(gates=0.5), inputs()
    probability = model.match(pixels, ids, mask)
    assert probability.shape == (6,) and ((probability > 0) & (probability < 1)).all()
    for other in (model.match(pixels.flip(0), ids, mask), model.match(pixels, ids.flip(0), mask.flip(0))):
        assert (other - probability).abs().max() > 1e-4


def test_match_tokens_scores_pairs_without_encoding_again():
    model, (pixels, ids, mask) = tiny_model(gates=0.5), inputs()
    image, text = model.image_tokens(pixels).tokens, model.text_tokens(ids, mask).tokens
    images, captions = torch.tensor([0, 5, 5]), torch.tensor([3, 3, 0])
    logits = model.match_tokens(image, text, mask, (images, captions))
    torch.testing.assert_close(logits.softmax(1)[:, 1], model.match(pixels[images], ids[captions], mask[captions]),
                               atol=1e-5, rtol=1e-5)


def test_pairs_of_unequal_numbers_are_refused():
    (pixels, ids, mask), model = inputs(), tiny_model()
    for call in (lambda: model.match(pixels, ids[:5], mask[:5]), lambda: model.remember(pixels, ids[:5], mask[:5]),
                 lambda: model.text_logits(pixels, ids[:5])):
        with pytest.raises(ValueError, match="6 images and 5 captions"):
            call()


# Memory ---------------------------------------------------------------------------------------------------


def test_what_is_remembered_changes_what_is_written_and_nothing_in_the_model():
    model, (pixels, ids, mask) = tiny_model(), inputs()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    belief = model.remember(pixels, ids, mask)
    assert (model.text_logits(pixels, ids, belief) - model.text_logits(pixels, ids)).abs().max() > 1e-5
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_words_move_a_key_as_far_as_they_agree_with_the_image():
    """Words that contradict the image would lead away from it, to those of other facts."""
    image, across = torch.eye(8)[0], torch.eye(8)[1]
    leaning = unit(image + across)
    assert torch.equal(pair_key(image, across), image) and torch.equal(pair_key(image, -image), image)
    torch.testing.assert_close(pair_key(image, image), image)
    key = pair_key(image, leaning)
    assert key @ image > 0.9 and key @ leaning > 0.85 and key.norm().item() == pytest.approx(1)
    torch.testing.assert_close(pair_key(torch.stack([image, image]), torch.stack([across, leaning])),
                               torch.stack([image, key]))


def test_remembering_in_parts_is_remembering_at_once():
    model, parts = tiny_model(), inputs()
    at_once = model.remember(*parts)
    in_parts = model.remember(*(x[4:] for x in parts), belief=model.remember(*(x[:4] for x in parts)))
    for one, other in zip(at_once, in_parts):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


def test_forgetting_a_pair_leaves_the_captions_of_the_rest_as_they_were():
    model, (pixels, ids, mask) = tiny_model(), inputs()
    belief, kept = model.remember(pixels, ids, mask), model.remember(pixels[1:], ids[1:], mask[1:])
    key, value = model.fact(model.image_tokens(pixels[:1]), model.text_tokens(ids[:1], mask[:1]), mask[:1])
    forgotten = model.memory.forget(belief, key, value)
    torch.testing.assert_close(model.text_logits(pixels, ids, forgotten), model.text_logits(pixels, ids, kept),
                               atol=1e-3, rtol=1e-3)


def test_a_model_without_memory_decodes_and_says_that_it_cannot_remember():
    model, parts = tiny_model(memory_slots=0), inputs()
    assert model.memory is None and model.text_logits(*parts[:2]).shape == (6, 10, WORDS)
    with pytest.raises(ValueError, match="model.memory_slots is 0"):
        model.remember(*parts)


# Building, saving -----------------------------------------------------------------------------------------


def test_saved_and_loaded_the_model_is_the_same(tmp_path):
    model, (pixels, ids, mask) = tiny_model(gates=0.5), inputs()
    model.memory.written_precision.normal_()                                       # a buffer and a bare parameter,
    model.memory.usage.uniform_()                                                  # neither what a new model has
    model.logit_scale.data.fill_(3.0)
    model.save_pretrained(tmp_path)
    loaded = BitGen.from_pretrained(tmp_path)
    assert isinstance(loaded.config, ModelConfig) and loaded.config == model.config and not loaded.training
    assert loaded.vision_config.tower == TOWER
    states = model.state_dict(), loaded.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert torch.equal(model.match(pixels, ids, mask), loaded.match(pixels, ids, mask))
    assert torch.equal(model.text_logits(pixels, ids), loaded.text_logits(pixels, ids))


def test_what_is_saved_is_plain_and_holds_the_tied_embedding_once(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["model"]["hidden_size"] == 32 and config["vision"]["tower"]["model_type"] == "dinov2"
    weights = load_file(tmp_path / "model.safetensors")
    assert [name for name, w in weights.items() if WORDS in w.shape] == ["text.embedding.weight"]
    assert {"memory.written_precision", "memory.written_information", "memory.usage"} <= set(weights)
    assert not list(tmp_path.glob("*.bin")) and not list(tmp_path.glob("*.p*t*l"))


def test_building_a_model_touches_no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a model was built with the network")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    tiny_model()


def test_a_pretrained_tower_stays_what_it_was(tmp_path):
    """Nothing that is built around the tower may initialise it again."""
    torch.manual_seed(1)
    source = VisionTower(VisionConfig(image_size=32, tower=TOWER)).eval()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    source.model.save_pretrained(tmp_path)
    vision, weights = resolve_tower(VisionConfig(image_size=32, pretrained=str(tmp_path)))
    model = BitGen(tiny_model().config, vision).eval()
    model.vision.load_state_dict(weights)
    pixels = inputs()[0]
    torch.testing.assert_close(model.vision(pixels), source(pixels), atol=1e-5, rtol=1e-5)
    model.train()
    model.encode_image(pixels).sum().backward()
    torch.testing.assert_close(model.eval().vision(pixels), source(pixels), atol=1e-5, rtol=1e-5)


def test_a_model_is_loaded_after_a_tower_was_in_the_same_process(tmp_path):
    """Loading builds a skeleton on the meta device, in whose list of constructors transformers leaves its own."""
    VisionTower(VisionConfig(image_size=32, tower=TOWER)).model.save_pretrained(tmp_path)
    code = f"""if True:
        import torch
        from bitgen.config import ModelConfig, VisionConfig
        from bitgen.model import BitGen
        from bitgen.vision import resolve_tower
        vision, _ = resolve_tower(VisionConfig(image_size=32, pretrained={str(tmp_path)!r}))
        with torch.device("meta"):
            model = BitGen(ModelConfig(hidden_size=32, vocab_size=300), vision)
        assert all(p.is_meta for p in model.parameters())"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_guides_model_has_5_to_10_million_parameters_outside_the_tower():
    config = load_preset("coco")
    model = BitGen(config.model, replace(config.vision, pretrained=None, name="dinov2-nano", image_size=64))
    assert 5e6 < model.outside_tower() < 10e6
    counts = model.parameter_counts()
    named = sum(counts.values()) + model.logit_scale.numel()
    assert named == sum(p.numel() for p in model.parameters()) == model.outside_tower() + counts["vision"]
    assert counts["text"] > 50257 * 128


WRONG = [("hidden_size", 0), ("hidden_size", 30), ("num_heads", 0), ("num_heads", 5), ("text_layers", 0),
         ("decoder_layers", 0), ("intermediate_size", 0), ("vocab_size", 1), ("max_tokens", 3), ("fusion_layers", 0),
         ("memory_slots", -1), ("temperature", 0.0), ("temperature", 0.001), ("temperature", float("nan")),
         ("dropout", -0.1), ("dropout", 1.5), ("memory_noise", 0.0), ("memory_noise", -1.0), ("memory_decay", 1.5),
         ("memory_decay", -0.1)]


@pytest.mark.parametrize("name, value", WRONG)
def test_a_setting_out_of_range_is_refused_by_name_and_value(name, value):
    with pytest.raises(ValueError, match=rf"model\.{name}\b") as error:
        tiny_model(**{name: value})
    assert str(value) in str(error.value)


def test_a_caption_longer_than_the_positions_is_refused():
    ids = torch.zeros(1, 17, dtype=torch.int64)
    with pytest.raises(ValueError, match="17 tokens.*16"):
        tiny_model().encode_text(ids, torch.ones_like(ids))


def test_places_are_waves_over_the_grid_for_fusion_and_decoder_alone():
    table = grid_positions(64, 128)
    assert table.shape == (64, 128) and table.std().item() == pytest.approx(3 ** -0.5, rel=1e-3)
    assert grid_positions(4, 30).shape == (4, 30)                    # any width, any square grid
    rows, columns = table.unflatten(0, (8, 8)).split(64, -1)
    assert rows.std(1).max() < 1e-6 and columns.std(0).max() < 1e-6  # one half tells the row, the other the column
    nearest = torch.cdist(table, table).fill_diagonal_(9.0).argmin(1)
    apart = torch.stack([nearest // 8 - torch.arange(64) // 8, nearest % 8 - torch.arange(64) % 8]).abs().sum(0)
    assert apart.max() == 1                                          # the nearest code is a neighbour's
    model = tiny_model().eval()
    pixels = torch.rand(2, 3, model.vision.image_size, model.vision.image_size)
    with torch.no_grad():
        before = model.image_tokens(pixels)
        model.patch_position.weight.add_(1.0)
        after = model.image_tokens(pixels)
    assert torch.equal(before.feature, after.feature) and torch.equal(before.tokens[:, 0], after.tokens[:, 0])
    assert (after.tokens[:, 1:] - before.tokens[:, 1:]).sub(1).abs().max() < 1e-5


def test_the_encoders_are_exported_with_a_free_batch():
    model, batch = tiny_model(), tiny_batch(full=True)
    many = torch.export.Dim("many", min=1, max=64)
    texts = batch.input_ids, batch.attention_mask
    for encode, *given in ((model.encode_image, batch.pixel_values), (model.encode_text, *texts)):
        module = torch.nn.Module()
        module.model, module.forward = model, encode
        exported = torch.export.export(module, tuple(given), dynamic_shapes=tuple({0: many} for _ in given)).module()
        torch.testing.assert_close(exported(*(x[:3] for x in given)), encode(*(x[:3] for x in given)))
