"""Admission: a hostile checkpoint is refused with its reason, before it costs memory and without running a thing."""

import json
import re
import shutil
from pathlib import Path

import pytest
import strangers
import torch
from conftest import tiny_model

from bitgen.admission import check_state, read_config, read_model, read_weights
from bitgen.hub import load
from bitgen.strict_json import parse, read_json


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    return strangers.write(tmp_path_factory.mktemp("valid"))


@pytest.fixture
def folder(valid, tmp_path):
    return Path(shutil.copytree(valid, tmp_path / "checkpoint-1"))


@pytest.mark.parametrize("name", strangers.CASES)
def test_a_hostile_checkpoint_is_refused_with_a_reason(name, folder):
    spoil, reason = strangers.CASES[name]
    spoil(folder)
    with strangers.memory() as used, pytest.raises(ValueError, match=reason) as refusal:
        load(folder)
    assert str(folder) in str(refusal.value) and len(str(refusal.value)) < 1000
    assert not re.search(r"[\x00-\x1f\x7f]", str(refusal.value).replace(str(folder), ""))
    assert used() < 300e6
    assert not (folder / strangers.CANARY).exists()


def test_there_are_at_least_thirty_cases():
    assert len(strangers.CASES) >= 30


def test_the_payload_of_the_cases_does_run_when_it_is_unpickled(tmp_path):
    import pickle

    pickle.loads(pickle.dumps(strangers.Payload(tmp_path))).close()
    assert (tmp_path / strangers.CANARY).exists()


def test_a_valid_checkpoint_is_the_model_that_was_saved(valid):
    model, processor = load(valid)
    saved = tiny_model(vocab_size=257)
    assert model.state_dict().keys() == saved.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), saved.state_dict().values()))
    pixels, text = torch.randn(2, 3, 32, 32), processor(text=["a red ring", "a blue square"])
    with torch.no_grad():
        assert torch.equal(model.match(pixels, **text), saved.match(pixels, **text))
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in saved.parameters()]
    assert not model.training and all(tensor.device.type == "cpu" for tensor in model.state_dict().values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_checkpoint_in_half_precision_is_loaded_as_float32(folder, dtype):
    model, _ = load(folder)
    model.to(dtype).save_pretrained(folder)
    loaded, processor = load(folder)
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == (torch.float32 if tensor.is_floating_point() else tensor.dtype)
        assert torch.equal(tensor, model.state_dict()[name].to(tensor.dtype))
    assert loaded.encode_text(**processor(text=["a red ring"])).isfinite().all()


def test_a_checkpoint_in_double_precision_is_refused_with_what_is_right(folder):
    load(folder)[0].double().save_pretrained(folder)
    with pytest.raises(ValueError, match="'F64'; a model's are F32 or F16 or BF16"):
        load(folder)


def test_loading_goes_to_the_device_that_is_named(folder):
    model, processor = load(folder, device="meta")
    assert model.encode_text(**processor(text=["a red ring"])).device.type == "meta"


def test_loading_draws_no_random_numbers(valid):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    load(valid)
    assert torch.equal(before, torch.get_rng_state())


def test_the_model_keeps_its_weights_when_the_file_changes(folder):
    model = read_model(folder)
    before = model.text.embedding.weight.clone()
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    assert torch.equal(model.text.embedding.weight, before)


def test_a_configuration_costs_no_memory(folder):
    strangers.config(vocab_size=300_000, hidden_size=512)(folder)
    with strangers.memory() as used:
        model = read_config(folder / "config.json")
    assert sum(p.numel() for p in model.parameters()) * 4 > 500e6 and used() < 50e6


def test_tensors_of_another_model_are_refused(valid):
    with pytest.raises(ValueError, match="memory"):
        read_weights(valid / "model.safetensors", tiny_model(vocab_size=257, memory_slots=0).state_dict())


@pytest.mark.parametrize("name", ["weights.pt", "weights.bin", "weights.pkl", "weights.ckpt"])
def test_a_pickle_is_refused_by_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(strangers.pickled(tmp_path))
    with pytest.raises(ValueError, match=f"{name}.* pickle"):
        load(tmp_path / name)
    assert not (tmp_path / strangers.CANARY).exists()


# The training state ---------------------------------------------------------------------------------------------


def test_a_training_state_passes(tmp_path):
    path = tmp_path / "checkpoint-1.pt"
    torch.save({"step": 1, "weights": {"a": torch.randn(3, 4)}, "random": [{"torch": torch.get_rng_state()}]}, path)
    check_state(path)


@pytest.mark.parametrize("made, reason", [
    (strangers.pickled, "not a training state"),
    (lambda folder: strangers.saved(strangers.Payload(folder)), "not a training state"),
    (lambda folder: strangers.saved({"a": torch.zeros(1).expand(2**40)}), "larger than the file"),
    (lambda folder: strangers.deflated(strangers.saved(torch.zeros(10**6))), "compressed"),
    (lambda folder: strangers.saved(torch.zeros(1000))[:-50], "not a training state"),
    (lambda folder: strangers.saved(["x" * 17_000_000]), "data.pkl' has 17,000,... bytes; at most 16,000,000"),
    (lambda folder: strangers.saved([twice_nested(60), torch.zeros(1).expand(2**40)]), "larger than the file"),
    (lambda folder: b"", "not a training state"),
])
def test_a_hostile_training_state_is_refused(tmp_path, made, reason):
    path = tmp_path / "checkpoint-1.pt"
    path.write_bytes(made(tmp_path))
    with strangers.memory() as used, pytest.raises(ValueError, match=reason) as refusal:
        check_state(path)
    assert str(path) in str(refusal.value) and used() < 300e6
    assert not (tmp_path / strangers.CANARY).exists()


def twice_nested(depth):
    """A list that is twice in a list that is twice in a list ...: a small file, 2^depth ways through it."""
    value = []
    for _ in range(depth):
        value = [value, value]
    return value


# JSON -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"NaN", b"-Infinity", b"1e999", b'{"a": 1, "a": 2}', b"[" * 9 + b"]" * 9, b"\xff",
                                  b"\xef\xbb\xbf{}", b"{", b"", b"9" * 5000, b"[" * 100_000])
def test_json_that_only_python_takes_is_refused(data):
    with pytest.raises(ValueError):
        parse(data)


@pytest.mark.parametrize("value", [None, [], {"a": [1, 2.5, {"b": "x"}]}, [[[[[[[[]]]]]]]], {"long": "y" * 1000}])
def test_json_of_the_standard_comes_back(value):
    assert parse(json.dumps(value).encode()) == value


def test_a_json_file_is_measured_before_it_is_read(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(ValueError, match=r"config.json: 1,000,000,000,000 bytes; at most 100 are read"):
        read_json(path, 100)
