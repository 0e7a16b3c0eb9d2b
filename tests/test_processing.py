"""Pictures and captions become model inputs exactly as in training, and a saved processor makes the same ones."""

import io
import json

import pytest
import torch
from PIL import Image

from bitgen.config import VisionConfig
from bitgen.images import BadImage, normalise, to_uint8
from bitgen.processing import Processor
from bitgen.tokenizer import Tokenizer

CAPTIONS = ["a red ring", "a large blue square on the left"]


@pytest.fixture
def processor():
    return Processor(Tokenizer.train(CAPTIONS, 270), VisionConfig(image_size=16), max_tokens=32)


def photo(colour="red"):
    return Image.new("RGB", (40, 20), colour)


def test_both_inputs(processor):
    inputs = processor(images=[photo(), photo("blue")], text=CAPTIONS)
    assert set(inputs) == {"pixel_values", "input_ids", "attention_mask"}
    assert inputs["pixel_values"].shape == (2, 3, 16, 16) and inputs["pixel_values"].dtype == torch.float32
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape


def test_either_alone(processor):
    assert set(processor(images=[photo()])) == {"pixel_values"}
    assert set(processor(text=CAPTIONS)) == {"input_ids", "attention_mask"}
    with pytest.raises(ValueError, match="neither"):
        processor()


def test_pixels_are_those_of_training(processor):
    expected = normalise(to_uint8(photo(), 16)[None], processor.vision.mean, processor.vision.std)
    assert torch.equal(processor(images=[photo()])["pixel_values"], expected)


def test_sources(processor, tmp_path):
    path = tmp_path / "photo.png"
    photo().save(path)
    inputs = processor(images=[path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), photo()])
    assert (inputs["pixel_values"] == inputs["pixel_values"][0]).all()


@pytest.mark.parametrize("inputs", [{"images": photo()}, {"images": "photo.png"}, {"images": []}, {"text": "a dog"}])
def test_a_list_is_asked_for(processor, inputs):
    with pytest.raises(ValueError, match="list"):
        processor(**inputs)


def test_an_empty_list_of_images_is_called_so(processor):
    with pytest.raises(ValueError, match="images: an empty list"):
        processor(images=[])


def test_any_row_of_images_will_do(processor):
    paths = [photo(), photo()]
    assert processor(images=(image for image in paths))["pixel_values"].shape[0] == 2
    with pytest.raises(ValueError, match="images: an empty list"):
        processor(images=iter([]))


def test_what_is_made_lies_on_the_device_of_the_model(processor):
    elsewhere = Processor(processor.tokenizer, processor.vision, processor.max_tokens, device="meta")
    made = elsewhere(images=[photo()], text=["a dog"])
    assert {values.device.type for values in made.values()} == {"meta"}


def test_unreadable_images_are_named(processor, tmp_path):
    with pytest.raises(BadImage, match="missing.png"):
        processor(images=[tmp_path / "missing.png"])


def test_saved_and_loaded_it_is_the_same(processor, tmp_path):
    processor.save(tmp_path)
    loaded = Processor.load(tmp_path)
    for name, value in processor(images=[photo()], text=CAPTIONS).items():
        assert torch.equal(loaded(images=[photo()], text=CAPTIONS)[name], value)


@pytest.mark.parametrize("key, value", [
    ("image_size", "16"), ("image_size", 0), ("image_size", True), ("image_size", 10**9), ("max_tokens", 1),
    ("image_mean", [0.5, 0.5]), ("image_std", [0.0, 1.0, 1.0]), ("image_std", None), ("image_mean", ["a", "b", "c"]),
])
def test_a_bad_value_is_named(processor, tmp_path, key, value):
    processor.save(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match=f"preprocessor_config.json: {key}"):
        Processor.load(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", "3"])
def test_a_bad_file_is_named(processor, tmp_path, content):
    processor.save(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(ValueError, match="preprocessor_config.json"):
        Processor.load(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="preprocessor_config.json"):
        Processor.load(tmp_path)
