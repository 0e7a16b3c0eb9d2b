"""Runs and galleries for the app's tests: tiny random models that know some words, and a few drawn scenes."""

import csv
import io
import json
from pathlib import Path

from conftest import tiny_model
from PIL import Image
from safetensors.torch import save_model

from bitgen.config import Config, VisionConfig, to_dict
from bitgen.processing import Processor
from bitgen.scenes import render
from bitgen.tokenizer import Tokenizer

SENTENCES = ["a picture of a red ring above a blue square on grey", "a large green star left of a small pink heart",
             "on the left a cyan cross, on the right a yellow diamond", "an orange circle below a purple triangle"]


def write_run(folder: Path, seed: int = 0) -> Path:
    """A run folder with a model 32 wide, random but for its tokenizer, whose features spread over the sphere."""
    folder.mkdir(parents=True)
    tokenizer = Tokenizer.train(SENTENCES, 320)
    model = tiny_model(seed, gates=0.5, vocab_size=tokenizer.vocab_size, max_tokens=48)
    Processor(tokenizer, VisionConfig(image_size=32), 48).save(folder)
    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config = {"model": to_dict(model.config), "vision": to_dict(model.vision_config)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_gallery(folder: Path, count: int = 24) -> Path:
    """Pictures of scenes and a table of their captions, two each."""
    folder.mkdir(parents=True)
    scenes = render("test", count, size=32)
    with open(folder / "captions.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption"])
        for i in range(count):
            name = f"scene-{i:02}.png"
            Image.fromarray(scenes.pixels[i].transpose(1, 2, 0)).save(folder / name)
            table.writerows([name, caption] for caption in scenes.captions[i][:2])
    return folder


def write_metrics(folder: Path, steps: int = 100, **later) -> None:
    """What training leaves beside a model: metrics of every step, and its settings; `later`: from step 81 on."""
    rows = [{"step": step, "itc": 5.0 - step / 100, "itc_chance": 5.05, "itm": 0.69, "itm_acc": 0.5,
             "itm_acc_chance": 0.67, "total": 8.0, "text": 6.0, "grad_norm": 0.3, "grad_norm/text": 0.2,
             "grad_norm/vision": 0.1, "logit_scale": 14.0, **(later if step > 80 else {})}
            for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = to_dict(Config())
    config["optim"]["warmup_steps"] = 10
    (folder / "run.json").write_text(json.dumps(config))


def png(colour: str = "red", size: tuple[int, int] = (20, 20)) -> bytes:
    """A picture of one colour, as a file."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()
