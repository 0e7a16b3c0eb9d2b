"""Numbers of network, slots and mistakes: against slow formulas, bad for a bad model, and nothing is moved."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import TOWER, tiny_batch, tiny_model

from bitgen import attention as A
from bitgen import diagnostics as D
from bitgen import mistakes as M
from bitgen import slots as S
from bitgen.config import Config, LossConfig, OptimConfig, VisionConfig
from bitgen.encoded import Gallery
from bitgen.model import BitGen
from bitgen.objective import Objective
from bitgen.optimizer import named_state, update_ratios
from bitgen.setup import make_optimizer


@pytest.fixture(scope="module")
def model():
    return tiny_model(gates=0.5)


def gallery_of(model, batch):
    with torch.no_grad():
        image, text = model.image_tokens(batch.pixel_values), model.text_tokens(batch.input_ids, batch.attention_mask)
    return Gallery(image.feature, text.feature, batch.image_index, list(range(len(batch.image_ids))), image.tokens,
                   text.tokens, batch.input_ids, batch.attention_mask)


def everything(model):
    return {**{k: v.clone() for k, v in model.state_dict().items()}, "random": torch.get_rng_state()}


def test_looking_changes_nothing(model):
    model.train()
    batch, before = tiny_batch(), everything(model)
    D.gradient_table(model, batch, LossConfig())
    D.activations(model, batch)
    D.landscape(model, batch, LossConfig(), points=3, directions=1)
    A.attention_entropy(model, batch)
    A.occlusion(model, batch.pixel_values[:1], batch.input_ids[:1], batch.attention_mask[:1])
    S.facts(model, gallery_of(model, batch))
    after = everything(model)
    assert all(torch.equal(before[name], after[name]) for name in before) and model.training
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    model.eval()


# Gradients and updates ------------------------------------------------------------------------------------


def test_gradient_table_is_what_backward_leaves(model):
    batch, config = tiny_batch(), LossConfig(text=0.25)
    table = D.gradient_table(model, batch, config)
    twin = copy.deepcopy(model)
    torch.manual_seed(0)
    losses, _, _ = Objective(twin, LossConfig(text=0.25, queue=0, momentum=0.0)).eval()(batch)
    (0.25 * losses["text"]).backward()
    for part in ("text", "vision", "decoder", "memory"):
        grads = [p.grad for p in getattr(twin, part).parameters() if p.grad is not None]
        assert table[part]["text"] == pytest.approx(torch.stack([g.norm() for g in grads]).norm().item(), rel=1e-4)
    assert table["fusion"]["itc"] == 0 and table["decoder"]["itc"] == 0 and table["decoder"]["itm"] == 0
    assert table["itc_image"]["itc"] > 0 and table["fusion"]["itm"] > 0
    assert set(table["vision"]) == {"itc", "itm", "text", "memory_kl", "total"}


@pytest.mark.parametrize("changes, parts, tolerance", [
    ({}, ("text", "vision", "match_head", "memory"), 2e-3),
    ({"vision_lr": 3e-4}, ("text", "vision", "match_head", "memory"), 2e-3),
    ({"weight_decay": 20.0}, ("text", "vision", "decoder"), 0.03),
    ({"muon": True}, ("text", "vision", "decoder", "fusion", "project"), 0.2),
    ({"muon": True, "weight_decay": 20.0}, ("project", "fusion"), 0.1)])
def test_update_ratios_are_what_the_step_did(changes, parts, tolerance):
    model = tiny_model()
    optimizer = make_optimizer(model, Config(optim=OptimConfig(lr=1e-3, **changes)))
    objective = Objective(model, LossConfig(queue=0, momentum=0.0))
    for seed in range(3):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.zero_grad()
        objective(tiny_batch(seed=seed))[0]["total"].backward()
        optimizer.step()
    found = update_ratios(list(model.named_parameters()), optimizer.param_groups, optimizer.state)
    for part in parts:
        pairs = [(p - before[name], p) for name, p in model.named_parameters() if name.startswith(f"{part}.")]
        moved, weights = (torch.stack([x[i].norm() for x in pairs]).norm().item() for i in (0, 1))
        assert found[part] == pytest.approx(moved / weights, rel=tolerance), part


def test_a_part_whose_weights_are_all_zero_has_no_ratio():
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([weight], lr=1e-3)
    weight.grad = torch.zeros(3)
    optimizer.step()
    assert update_ratios([("gate.weight", weight)], optimizer.param_groups, optimizer.state) == {}


@pytest.mark.parametrize("muon", [False, True])
def test_a_checkpoint_tells_its_last_update(tmp_path, muon):
    model, config = tiny_model(), OptimConfig(lr=1e-3, vision_lr=3e-4, decoder_lr=2e-3, muon=muon)
    assert D.checkpoint_update_ratios(model, tmp_path) == {}
    optimizer = make_optimizer(model, Config(optim=config))
    Objective(model, LossConfig(queue=0, momentum=0.0))(tiny_batch())[0]["total"].backward()
    optimizer.step()
    torch.save({"optimizer": named_state(optimizer, model)}, tmp_path / "checkpoint-1.pt")
    direct = update_ratios(list(model.named_parameters()), optimizer.param_groups, optimizer.state)
    assert D.checkpoint_update_ratios(model, tmp_path) == pytest.approx(direct) and direct["text"] > 0
    assert D.checkpoint_update_ratios(tiny_model(text_layers=1), tmp_path) == {}, "another model"
    assert D.checkpoint_update_ratios(tiny_model(hidden_size=64), tmp_path) == {}, "other shapes"


# Activations, attention, landscape ------------------------------------------------------------------------


def test_dead_units_and_outliers_are_seen():
    model = tiny_model(gates=0.5)
    with torch.no_grad():
        model.text.blocks[1].ffn[0].weight[:16] = 0                                          # 16 of 64 units
        model.decoder.blocks[0].ffn[0].weight.zero_()
        model.fusion.layers[0].ffn[0].bias[3] = 1000.0
    found = {each.name: each for each in D.activations(model, tiny_batch())}
    assert found["text hidden 1"].dead == 0.25 and found["text hidden 0"].dead == 0
    assert found["decoder hidden 0"].dead == 1.0 and found["fusion hidden 0"].largest > 7
    assert {"vision block 0", "vision block 1", "text block 0", "decoder block 1"} <= set(found)


TOWERS = {"dinov2": {}, "dinov2 with swiglu": {"use_swiglu_ffn": True}, "dinov2_with_registers": {},
          "dinov2_with_registers with swiglu": {"use_swiglu_ffn": True}, "vit": {}, "deit": {}}


@pytest.mark.parametrize("kind", TOWERS)
def test_hidden_units_of_every_tower_are_seen(kind):
    tower = TOWER | TOWERS[kind] | {"model_type": kind.split()[0], "intermediate_size": 64}
    model = BitGen(tiny_model().config, VisionConfig(image_size=32, tower=tower)).eval()
    first, second = (block.mlp for block in model.vision.stages()[1:-1])
    with torch.no_grad():
        for layer in (first.fc1,) if hasattr(first, "fc1") else (first.gate_proj, first.up_proj):
            layer.weight[:16] = 0
            layer.bias[:16] = 0
        up = second.fc1 if hasattr(second, "fc1") else second.up_proj
        up.weight[5] *= 1000
    found = {each.name: each for each in D.activations(model, tiny_batch())}
    units = first.fc1.out_features if hasattr(first, "fc1") else first.up_proj.out_features
    assert found["vision hidden 0"].dead == pytest.approx(16 / units)
    assert found["vision hidden 1"].dead < 0.5 and found["vision hidden 1"].largest > 7


def test_a_lean_tower_is_looked_into_too():
    model = tiny_model()
    plain = D.activations(model, tiny_batch())
    model.vision.make_lean()
    lean = D.activations(model, tiny_batch())
    assert [each.name for each in lean] == [each.name for each in plain] and model.vision.lean
    assert all(one[1:] == pytest.approx(other[1:], rel=1e-4) for one, other in zip(plain, lean))


@pytest.mark.parametrize("padding", [3, 7])
def test_what_units_do_is_seen_at_words_and_not_at_padding(padding):
    """Patches are never taken for words, though with 7 more a caption has as many tokens as an image."""
    model, batch = tiny_model(gates=0.5, max_tokens=32), tiny_batch(captions=1)
    padded = replace(batch, **{name: F.pad(getattr(batch, name), (0, padding))
                               for name in ("input_ids", "attention_mask")})
    for one, other in zip(D.activations(model, batch), D.activations(model, padded), strict=True):
        assert one.name == other.name and one[1:] == pytest.approx(other[1:], rel=1e-3), one.name


def test_attention_entropy_is_one_where_all_is_alike_and_zero_at_one_token():
    model = tiny_model(gates=0.5)
    with torch.no_grad():
        for attention in (model.text.blocks[0].self_attention, model.fusion.layers[1].words_to_patches):
            attention.query.weight.zero_()
            attention.query.bias.zero_()
        sharp = model.fusion.layers[0].words_to_patches
        sharp.query.weight.mul_(1e5)
    found = A.attention_entropy(model, tiny_batch())
    assert found["text 0 self"] == found["fusion 1 words to patches"] == pytest.approx([1.0] * 4)
    assert max(found["fusion 0 words to patches"]) < 0.1
    assert len(found) == 2 + 2 + 2 * 3 + 2 * 2 and all(0 <= h <= 1 + 1e-6 for heads in found.values() for h in heads)


def test_attention_entropy_is_that_of_the_attention_used(model):
    batch = tiny_batch(captions=1)
    seen = {"word_to_patch": [], "patch_to_word": []}
    gallery = gallery_of(model, batch)
    with torch.no_grad():
        model.fusion(gallery.image_tokens, gallery.text_tokens, batch.attention_mask, attentions=seen)
    weights = seen["word_to_patch"][0]                                                       # (B, H, L, 1+P)
    loops = [[-sum(w * math.log(w) for w in weights[b, h, q].tolist()) / math.log(weights.shape[-1])
              for b in range(6) for q in range(10) if batch.attention_mask[b, q]] for h in range(4)]
    expected = [sum(values) / len(values) for values in loops]
    assert A.attention_entropy(model, batch)["fusion 0 words to patches"] == pytest.approx(expected, abs=1e-4)


def test_looks_are_over_patches_of_real_words(model):
    batch = tiny_batch(captions=1)
    one = batch.pixel_values[:1], batch.input_ids[:1], batch.attention_mask[:1]
    words = int(batch.attention_mask[0].sum())
    seen = A.decoder_attention(model, *one)
    assert seen.shape == (words - 1, 16) and (seen >= 0).all() and (seen.sum(1) < 1).all()
    padded = F.pad(one[1], (0, 3)), F.pad(one[2], (0, 3))
    assert torch.allclose(A.decoder_attention(model, one[0], *padded), seen, atol=1e-6)


def test_occlusion_paints_over_one_patch_at_a_time(model):
    batch = tiny_batch(captions=1)
    pixels, words = batch.pixel_values[:1], (batch.input_ids[:1], batch.attention_mask[:1])
    falls = A.occlusion(model, pixels, *words)
    painted = pixels.clone()
    painted[:, :, 8:16, 16:24] = pixels[0].flatten(1).median(1).values[:, None, None]        # row 1, column 2 of 4 x 4
    caption = model.encode_text(*words)
    expected = ((model.encode_image(pixels) - model.encode_image(painted)) * caption).sum()
    assert falls.shape == (16,) and falls[6] == pytest.approx(expected.item(), abs=1e-5)
    flat = torch.full_like(pixels, 0.3)
    assert A.occlusion(model, flat, *words).abs().max() < 1e-5


def test_landscape_passes_through_the_weights(model):
    batch = tiny_batch()
    distances, curves = D.landscape(model, batch, LossConfig(), points=5, directions=2)
    assert distances == [-1, -0.5, 0, 0.5, 1] and set(curves) == {"itc", "itm", "text", "memory_kl", "total"}
    assert curves["total"][0][2] == curves["total"][1][2] and curves["total"][0][4] != curves["total"][1][4]


def test_a_line_through_the_weights_is_as_long_in_each_filter_as_the_weight():
    for shape in ((6, 4), (6, 3, 2, 2)):
        weight = torch.randn(shape) * torch.logspace(-3, 3, 6).view(-1, *[1] * (len(shape) - 1))
        line = D._filter_normalised(weight, torch.Generator().manual_seed(0))
        assert torch.allclose(line.flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1))
        assert F.cosine_similarity(line.flatten(1), weight.flatten(1)).abs().mean() < 0.9


# Slots ----------------------------------------------------------------------------------------------------


def test_facts_are_what_the_model_writes(model):
    batch = tiny_batch()
    held = S.facts(model, gallery_of(model, batch))
    belief = model.memory.write(model.memory.prior(), held.key, held.value)
    direct = model.remember(batch.pixel_values, batch.input_ids[::2], batch.attention_mask[::2])
    for mine, other in zip(belief, direct):
        assert torch.allclose(mine, other, rtol=1e-3, atol=1e-3)


def test_usage_can_be_bad():
    one = torch.zeros(20, 8)
    one[:, 3] = 1
    assert S.usage(one) == pytest.approx({"utilization": 1 / 8, "dead": 7, "perplexity": 1, "slots_a_fact": 1,
                                          "slots": 8})
    each = torch.eye(8).repeat(3, 1)
    assert S.usage(each) == pytest.approx({"utilization": 1, "dead": 0, "perplexity": 8, "slots_a_fact": 1, "slots": 8})
    assert S.usage(torch.ones(5, 8))["slots_a_fact"] == pytest.approx(8)
    assert S.usage(torch.ones(5, 64))["dead"] == 0, "a 64th of the mass is all that a slot is to have"


def test_slots_that_stand_for_a_label_tell_one_bit():
    labels = (torch.arange(40) % 2 == 0)[:, None]
    address = torch.where(labels, torch.eye(4)[0], torch.eye(4)[2])
    bits, shuffled = S.information(address, labels)
    assert bits.item() == pytest.approx(1.0) and shuffled.item() < 0.3
    lift = S.by_label(address + 0.01, labels)
    assert lift.argmax() == 0 and lift.argmin() == 2 and abs(lift[0, 1]) < 1e-5
    assert S.information(torch.ones(40, 4), labels)[0].item() == pytest.approx(0, abs=1e-9)


def test_similarity_of_slots(model):
    address = torch.rand(30, 8)
    address[:, 5] = address[:, 2]
    shares = S.mass(address)
    together, held = S.similarity(model.memory, address)
    assert torch.allclose(together, torch.corrcoef(shares.T), atol=1e-4) and together[2, 5] == pytest.approx(1)
    assert held.shape == (8, 8) and torch.allclose(held.diagonal(), torch.ones(8), atol=1e-5)
    shifted = tiny_model(gates=0.5)
    with torch.no_grad():
        shifted.memory.prior_mean += 100                                                     # what all slots hold alike
    assert torch.allclose(S.similarity(shifted.memory, address)[1], held, atol=1e-2)


def test_capacity_falls_and_an_unwritten_memory_is_at_chance():
    model = tiny_model(memory_slots=16)
    generator = torch.Generator().manual_seed(0)
    key, value = (F.normalize(torch.randn(64, 32, generator=generator), dim=1) for _ in range(2))
    curves = S.capacity(model.memory, S.Facts(key, key, value), [4, 8, 64])
    assert curves["chance"] == [1 / 4, 1 / 8, 1 / 64] and curves["pair"] == curves["image"]
    assert curves["pair"][0] > 0.95 and curves["pair"][0] > curves["pair"][2] > curves["never"][2]
    assert curves["never"][1] == pytest.approx(1 / 8, abs=0.12)
    noisy = S.capacity(model.memory, S.Facts(key, key, value), [8], noise=5.0)
    assert noisy["pair"][0] < curves["pair"][1]
    strange = S.capacity(model.memory, S.Facts(key, key.roll(1, 0), value), [8])
    assert strange["pair"][0] == curves["pair"][1] and strange["image"][0] < 0.2
    with torch.no_grad():
        written = model.memory.write(model.memory.prior(), key[:8], value[:8]) - model.memory.prior()
        model.memory.written_precision.copy_(written.precision)
        model.memory.written_information.copy_(written.information)
    assert S.capacity(model.memory, S.Facts(key, key, value), [8]) == {name: [curve[1]] for name, curve in
                                                                       curves.items()}, "what a run wrote has no part"
    assert S._found(torch.ones(8, 32), value[:8]) == 1 / 8, "a reading that says the same of all finds one by luck"
    with pytest.raises(ValueError, match="from 2 to 64"):
        S.capacity(model.memory, S.Facts(key, key, value), [65])


def test_certainty_only_grows_and_ends_at_the_posterior(model):
    key, value = (F.normalize(torch.randn(10, 32, generator=torch.Generator().manual_seed(i)), dim=1) for i in (0, 1))
    held, memory = S.Facts(key, key, value), model.memory
    slots, readings = S.certainty(memory, held, write=6)
    assert slots.shape == (7, 8) and readings.shape == (7, 10)
    assert (slots.diff(dim=0) <= 1e-6).all() and (readings.diff(dim=0) <= 1e-6).all()
    assert torch.allclose(slots[0], memory.log_prior_precision.exp().reciprocal())
    with torch.no_grad():
        belief = memory.write(memory.prior(), key[:6], value[:6])
        assert torch.allclose(readings[-1], memory.read(belief, key).variance, rtol=1e-3)
        assert torch.allclose(slots[-1], belief.precision.inverse().diagonal(), rtol=1e-2)


def test_usage_over_time_reads_checkpoints(tmp_path):
    from safetensors.torch import save_file

    for step, value in ((20, 0.2), (9, 0.1)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        save_file({"memory.usage": torch.full((4,), value)}, tmp_path / f"checkpoint-{step}" / "model.safetensors")
    steps, usage = S.usage_over_time(tmp_path.iterdir())
    assert steps == [9, 20] and usage[:, 0].tolist() == pytest.approx([0.1, 0.2])
    save_file({"other": torch.zeros(1)}, tmp_path / "checkpoint-9" / "model.safetensors")
    with pytest.raises(ValueError, match="checkpoint-9: a model without memory"):
        S.usage_over_time(tmp_path.iterdir())


def test_a_model_without_memory_is_refused():
    model = tiny_model(memory_slots=0)
    with pytest.raises(ValueError, match="no memory"):
        S.facts(model, gallery_of(model, tiny_batch()))


# Mistakes -------------------------------------------------------------------------------------------------


def scene(*things, relation="above", background="white"):
    objects = [dict(zip(("colour", "shape", "size", "texture"), thing.split())) for thing in things]
    return {"objects": objects, "relation": relation, "background": background}


TRUTH = [scene("red ring small plain", "blue star large plain"),
         scene("red ring small plain", "green star large plain"),
         scene("pink heart small plain", "pink cross small dotted", background="grey")]
IMAGES, OWNER = torch.eye(3), torch.tensor([0, 0, 1, 2])
TEXTS = torch.tensor([[1.0, 0.1, 0.0], [0.2, 1.0, 0.1], [0.0, 1.0, 0.0], [0.2, 1.0, 0.3]])  # finds 0, 1, 1, 1


def test_confusions_pair_what_is_left_over_in_the_nearest_wrong_images(monkeypatch):
    monkeypatch.setattr(M, "NEAREST", 1)  # of captions 0 and 1 that is image 1, of 2 image 0 (a tie), of 3 image 1
    found = M.confusion(IMAGES, TEXTS, OWNER, TRUTH, "colour")
    at = {name: i for i, name in enumerate(found.names)}
    assert found.shares[at["blue"], at["blue"]] == 0 and found.shares[at["blue"], at["green"]] == 1
    assert found.shares[at["red"], at["red"]] == 1 and found.shares[at["green"], at["blue"]] == 1
    assert found.shares[at["pink"], at["red"]] == 0.5 and found.shares[at["pink"], at["green"]] == 0.5
    for name in ("red", "green", "blue", "pink"):  # of each occurrence, in how many of the others it is met again
        has = [[thing["colour"] for thing in each["objects"]].count(name) for each in TRUTH]
        met = sum(min(has[i], has[j]) for i in range(3) for j in range(3) if i != j)
        assert found.chance[at[name]] == pytest.approx(met / (2 * max(sum(has), 1)))


def test_confusions_of_a_faultless_model_are_not_empty():
    found = M.confusion(IMAGES, IMAGES[OWNER], OWNER, TRUTH, "colour")                        # five: both other images
    at = {name: i for i, name in enumerate(found.names)}
    assert found.shares[at["red"], at["red"]] == 0.5 and found.shares[at["red"], at["pink"]] == 0.5
    assert found.shares[at["pink"]].sum() == 1 and found.shares[at["pink"], at["pink"]] == 0
    alone = M.confusion(IMAGES[:1], TEXTS[:1], OWNER[:1], TRUTH[:1], "colour")
    assert not alone.shares.any() and not alone.chance.any()


def test_bad_fields_of_confusions_are_named():
    with pytest.raises(ValueError, match="'colour' or 'shape', got 'size'"):
        M.confusion(IMAGES, TEXTS, OWNER, TRUTH, "size")


def test_differences_of_the_nearest_wrong_image_beside_chance():
    found, chance = M.differences(IMAGES, TEXTS, OWNER, TRUTH)                 # image 1, 1, 0 (a tie), 1
    assert found == {"colour": 1.0, "shape": 0.25, "size": 0.25, "texture": 0.25, "relation": 0.0, "background": 0.25}
    assert chance["shape"] == pytest.approx(0.625) and chance["relation"] == 0 and chance["background"] == 0.625
    assert M.differences(IMAGES, IMAGES[OWNER], OWNER, TRUTH)[1] == chance, "a model without a mistake too"
    assert M.differences(IMAGES[:1], TEXTS[:1], OWNER[:1], TRUTH[:1]) == ({}, {})


def test_the_same_things_in_another_order_are_no_difference():
    turned = TRUTH[0] | {"objects": TRUTH[0]["objects"][::-1]}
    found, chance = M.differences(torch.eye(2), torch.eye(2), torch.arange(2), [TRUTH[0], turned])
    assert not any(found.values()) and not any(chance.values())


def test_worst_queries_come_worst_first_and_once_an_image():
    texts = torch.tensor([[0.0, 1.0, 0.5], [0.1, 1.0, 0.2], [0.0, 1.0, 0.0], [0.5, 1.0, 0.7]])
    found = M.worst(IMAGES, texts, OWNER, count=5, shown=2)
    assert [(each.caption, each.image, each.rank, each.found) for each in found] == [
        (0, 0, 3.0, [1, 2]), (3, 2, 2.0, [1, 2])]
    assert M.worst(IMAGES, IMAGES[OWNER], OWNER) == []
