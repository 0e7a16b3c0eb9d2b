"""The tower gives what transformers gives, for each encoder, at its own image size and at another."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bitgen.admission import check_sizes
from bitgen.config import ModelConfig, VisionConfig
from bitgen.vision import TOWERS, VisionTower, build_tower, resolve_tower

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 4, "image_size": 24}
ENCODERS = {
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, mlp_ratio=2)),
    "dinov2_with_registers": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2)),
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**SIZES, intermediate_size=32)),
    "deit": lambda: transformers.DeiTModel(transformers.DeiTConfig(**SIZES, intermediate_size=32)),
}
EXTRA_TOKENS = {"dinov2": 0, "dinov2_with_registers": 4, "vit": 0, "deit": 1}
NANO = VisionConfig(image_size=32)


def save_encoder(kind, folder):
    """A small encoder in `folder`, every weight of it unlike an initial one."""
    torch.manual_seed(0)
    model = ENCODERS[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def load_tower(**settings):
    config, weights = resolve_tower(VisionConfig(**settings))
    tower = VisionTower(config).eval()
    tower.load_state_dict(weights)
    return tower


@pytest.mark.parametrize("size", [24, 16, 32])
@pytest.mark.parametrize("kind", ENCODERS)
def test_loaded_features_are_the_encoders_own(kind, size, tmp_path):
    encoder = save_encoder(kind, tmp_path)
    tower = load_tower(pretrained=str(tmp_path), image_size=size)
    pixels = torch.randn(2, 3, size, size)
    options = {"interpolate_pos_encoding": True} if kind in ("vit", "deit") else {}
    with torch.no_grad():
        tokens = encoder(pixels, **options).last_hidden_state
        extra = EXTRA_TOKENS[kind]
        expected = torch.cat([tokens[:, :1], tokens[:, 1 + extra:]], 1)
        torch.testing.assert_close(tower(pixels), expected, atol=1e-4, rtol=0)
    assert expected.shape == (2, 1 + (size // 4) ** 2, tower.width)


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_resolved_configuration_needs_nothing_else(kind, tmp_path):
    """It survives JSON, and the tower is built from it when the folder is gone."""
    save_encoder(kind, tmp_path / "encoder")
    config, weights = resolve_tower(VisionConfig(pretrained=str(tmp_path / "encoder"), image_size=16))
    config.tower = json.loads(json.dumps(config.tower))
    config.pretrained = "/gone"
    assert str(tmp_path) not in json.dumps(config.tower)
    tower = VisionTower(config)
    tower.load_state_dict(weights)
    assert set(weights) == set(tower.state_dict())


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_weight_that_learns_gets_a_gradient(kind, tmp_path):
    save_encoder(kind, tmp_path)
    tower = load_tower(pretrained=str(tmp_path), image_size=24)
    tower(torch.randn(2, 3, 24, 24)).square().mean().backward()
    assert [name for name, p in tower.named_parameters() if p.grad is None] == []


def test_a_saved_half_precision_encoder_is_loaded_in_float32(tmp_path):
    save_encoder("vit", tmp_path)
    transformers.ViTModel.from_pretrained(tmp_path, dtype=torch.float16).save_pretrained(tmp_path)
    _, weights = resolve_tower(VisionConfig(pretrained=str(tmp_path), image_size=24))
    assert {w.dtype for w in weights.values()} == {torch.float32}


def test_settings_that_the_encoder_does_not_know_are_left_out(tmp_path):
    """The published DINOv2 with registers name how positions are interpolated; transformers does not read it."""
    save_encoder("dinov2_with_registers", tmp_path)
    file = tmp_path / "config.json"
    more = {"interpolate_antialias": True, "interpolate_offset": 0.0}
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    config, _ = resolve_tower(VisionConfig(pretrained=str(tmp_path), image_size=24))
    check_sizes(ModelConfig(), config)
    assert config.tower["num_register_tokens"] == 4 and not more.keys() & config.tower.keys()


def test_pixels_are_normalised_as_the_encoder_was_trained(tmp_path):
    save_encoder("vit", tmp_path)
    settings = {"pretrained": str(tmp_path), "image_size": 24}
    usual = VisionConfig()
    config, _ = resolve_tower(VisionConfig(**settings))
    assert (config.mean, config.std) == (usual.mean, usual.std)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.4, 0.3]}')
    config, _ = resolve_tower(VisionConfig(**settings))
    assert (config.mean, config.std) == ((0.5, 0.5, 0.5), (0.5, 0.4, 0.3))
    config, _ = resolve_tower(VisionConfig(**settings, mean=(0.1, 0.2, 0.3)))
    assert (config.mean, config.std) == ((0.1, 0.2, 0.3), usual.std), "what was asked for"
    for content in ("{", '{"image_mean": [0.5]}', '{"image_mean": 0.5}'):
        (tmp_path / "preprocessor_config.json").write_text(content)
        with pytest.raises(ValueError, match="preprocessor_config.json"):
            resolve_tower(VisionConfig(**settings))


def test_the_built_in_nano_tower():
    config, weights = resolve_tower(VisionConfig())
    tower = VisionTower(config)
    assert weights is None and config.tower["model_type"] == "dinov2"
    assert 0.5e6 < sum(p.numel() for p in tower.parameters()) < 1e6
    assert tower(torch.randn(2, 3, 64, 64)).shape == (2, 65, tower.width) == (2, 65, 128)


@pytest.mark.parametrize("name, millions", [("dinov2-small", 22), ("dinov2-base", 86)])
def test_the_larger_built_in_towers_have_the_published_sizes(name, millions):
    with torch.device("meta"):
        tower = build_tower(VisionConfig(name=name, image_size=224))
    assert round(sum(p.numel() for p in tower.parameters()) / 1e6) == millions


@pytest.mark.parametrize("trainable, learning", [("all", 6), ("none", 0), (1, 2), (2, 3), (4, 5)])
def test_trainable_stages(trainable, learning):
    """Of embeddings, four blocks and the norm; what does not learn has no gradient and stays in evaluation mode."""
    tower = VisionTower(VisionConfig(image_size=32, trainable=trainable)).train()
    tokens = tower(torch.randn(2, 3, 32, 32))
    assert tokens.requires_grad == (learning > 0)
    if learning:
        tokens.square().mean().backward()
    for i, stage in enumerate(tower.stages()):
        learns = i >= 6 - learning
        assert all((p.grad is not None) == p.requires_grad == learns for p in stage.parameters())
        assert all(module.training == learns for module in stage.modules())
    assert not any(module.training for module in tower.eval().modules())


def test_an_attention_kernel_is_chosen_and_does_not_change_the_features():
    tower, pixels = VisionTower(NANO).eval(), torch.randn(2, 3, 32, 32)
    features = {}
    for precision, device, kernel in (("bf16", "cpu", "eager"), ("float32", "cpu", "sdpa"), ("bf16", "cuda", "sdpa")):
        tower.set_attention(precision, device)
        assert tower.model.config._attn_implementation == kernel
        with torch.no_grad():
            features[kernel] = tower(pixels)
    torch.testing.assert_close(features["eager"], features["sdpa"], atol=1e-5, rtol=0)


def test_an_image_does_not_depend_on_its_batch_mates():
    tower, pixels = VisionTower(NANO).train(), torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(tower(pixels)[:1], tower(pixels[:1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings, named", [
    ({"name": "resnet"}, "'resnet'.*dinov2-nano"),
    ({"image_size": 60}, "image_size 60 .* patch size 8; the nearest are 56 and 64"),
    ({"image_size": 4}, "image_size 4 .* the nearest are 8 and 16"),
    ({"image_size": 0}, "image_size 0 "),
    ({"name": "dinov2-small"}, "the nearest are 56 and 70"),
    ({"trainable": 5}, "trainable 5: .* 1 to 4 last blocks"),
    ({"trainable": 0}, "trainable 0"),
    ({"trainable": "some"}, "trainable 'some'"),
    ({"tower": {"model_type": "bert"}}, "model_type 'bert'.*supported: dinov2"),
    ({"tower": {"hidden_size": 64}}, "model_type None"),
    ({"pretrained": "facebook/dinov2-small"}, "resolve_tower first"),
])
def test_towers_that_cannot_be_built(settings, named):
    with pytest.raises(ValueError, match=named):
        VisionTower(VisionConfig(**settings))


def test_pretrained_paths_that_do_not_exist_are_not_sought_on_the_hub():
    for source in ("/no/such/folder", "../no/such", "./nothing", "~/nothing/here", "a/b/c"):
        with pytest.raises(ValueError, match="no such folder"):
            resolve_tower(VisionConfig(pretrained=source))


def test_a_hub_id_that_cannot_be_reached_is_named():
    with pytest.raises(ValueError, match="'nobody/nothing'"):
        resolve_tower(VisionConfig(pretrained="nobody/nothing"))


@pytest.mark.parametrize("content", [None, "", "{}", "[]", "not json", '{"model_type": "bert"}', '{"model_type": "x"}'])
def test_a_folder_without_a_vision_encoder_is_named(content, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=f"vision.pretrained '{tmp_path}'"):
        resolve_tower(VisionConfig(pretrained=str(tmp_path)))


def test_broken_weights_are_named(tmp_path):
    save_encoder("vit", tmp_path)
    file = tmp_path / "model.safetensors"
    whole, weights = file.read_bytes(), load_file(file)
    spoiled = {"absent": None, "cut": whole[: len(whole) // 2], "empty": b""}
    for content in spoiled.values():
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(ValueError, match=f"vision.pretrained '{tmp_path}': weights not readable"):
            resolve_tower(VisionConfig(pretrained=str(tmp_path), image_size=24))
    # transformers fills what is missing with noise and goes on
    save_file({k: v for k, v in weights.items() if "layers.1." not in k and "layer.1." not in k}, file,
              metadata={"format": "pt"})
    with pytest.raises(ValueError, match="weights are missing, such as .*1"):
        resolve_tower(VisionConfig(pretrained=str(tmp_path), image_size=24))


@pytest.mark.parametrize("shape", [(2, 3, 40, 40), (2, 3, 32, 64), (2, 1, 32, 32), (3, 32, 32)])
def test_pixels_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(images, 3, 32, 32\)"):
        VisionTower(NANO)(torch.zeros(shape))


def test_the_table_of_built_in_towers_is_not_changed_by_building():
    before = json.dumps(TOWERS)
    resolve_tower(NANO)
    VisionTower(NANO)
    assert json.dumps(TOWERS) == before


@pytest.mark.parametrize("kind", ENCODERS)
def test_hidden_patches_do_not_count_and_shown_ones_keep_their_place(kind, tmp_path):
    """Other pixels under hidden patches change nothing; with nothing hidden it is the whole tower."""
    save_encoder(kind, tmp_path)
    tower, pixels = load_tower(pretrained=str(tmp_path), image_size=24), torch.randn(2, 3, 24, 24)
    everything = torch.arange(36).expand(2, -1)
    with torch.no_grad():
        torch.testing.assert_close(tower(pixels, everything), tower(pixels))
        shown = torch.tensor([[0, 7, 35], [1, 2, 3]])
        tokens = tower(pixels, shown)
        assert tokens.shape == (2, 4, tower.width)
        hidden = torch.ones(2, 36, dtype=torch.bool).scatter(1, shown, False)
        mask = hidden.view(2, 1, 6, 6).repeat_interleave(4, 2).repeat_interleave(4, 3)
        torch.testing.assert_close(tower(torch.where(mask, torch.randn(()), pixels), shown), tokens)
        assert (tower(pixels, shown + torch.tensor([[0, 1, 0], [0, 0, 0]]))[0, 2] - tokens[0, 2]).abs().max() > 1e-3


def test_patches_are_hidden_in_training_alone_and_anew_for_each_image():
    tower = VisionTower(VisionConfig(image_size=32, patch_dropout=0.5))
    shown = tower.train().draw_patches(8, "cpu")
    assert shown.shape == (8, 8) and (shown.diff() > 0).all() and 0 <= shown.min() and shown.max() < 16
    assert len(shown.unique(dim=0)) > 1 and (tower.draw_patches(8, "cpu") != shown).any()
    assert tower.eval().draw_patches(8, "cpu") is None
    assert VisionTower(NANO).train().draw_patches(8, "cpu") is None
