"""What a run begins with."""

import torch
from conftest import TOWER

from bitgen.config import Config, ModelConfig, VisionConfig
from bitgen.setup import make_model
from bitgen.tokenizer import Tokenizer
from bitgen.vision import VisionTower


def test_a_new_run_begins_with_the_weights_of_its_pretrained_tower(tmp_path):
    torch.manual_seed(1)
    source = VisionTower(VisionConfig(image_size=32, tower=TOWER)).eval()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    source.model.save_pretrained(tmp_path)
    config = Config(model=ModelConfig(hidden_size=32, num_heads=4),
                    vision=VisionConfig(image_size=32, pretrained=str(tmp_path)))
    captions = [["a red ring"]]
    model = make_model(config, Tokenizer.train(captions[0], 257), captions, None).eval()
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.vision(pixels), source(pixels), atol=1e-5, rtol=1e-5)
