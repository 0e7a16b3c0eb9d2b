"""`bitgen diagnose`: one page that carries everything, of any model, and bad where the model is bad."""

import json
import re
import shutil
import sys
import types
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from conftest import tiny_model
from safetensors.torch import save_model

from bitgen import checkpoint, page, report
from bitgen.cli import main
from bitgen.config import Config, to_dict
from bitgen.data import open_data
from bitgen.optimizer import named_state, parameter_groups
from bitgen.processing import Processor
from bitgen.tokenizer import Tokenizer

VOID = {"meta", "br", "img", "input", "link", "hr"}


class Line:
    """UMAP's place, without its seconds of compiling: points on a line."""

    def __init__(self, **settings):
        pass

    def fit_transform(self, features):
        return np.stack([np.arange(len(features)), features[:, 0]], 1)


class Whole(HTMLParser):
    """Checks that tags close in order, and keeps texts and addresses."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.addresses, self.tags = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with two checkpoints of tiny models that never learned, a history and settings."""
    folder = tmp_path_factory.mktemp("report") / "run"
    config = Config()
    config.data.cache, config.data.scenes_train = str(folder.parent / "cache"), 64
    config.vision.image_size = 32
    captions = [text for texts in open_data(config.data, "val", 32).captions for text in texts]
    tokenizer = Tokenizer.train(captions, 300)
    folder.mkdir()
    for step in (10, 20):
        model = tiny_model(seed=step, vocab_size=tokenizer.vocab_size, max_tokens=64, gates=0.1)
        save_model(model, str(folder / "model.safetensors"))
        values = {"model": to_dict(model.config), "vision": to_dict(model.vision_config)}
        (folder / "config.json").write_text(json.dumps(values))
        Processor(tokenizer, model.vision_config, 64).save(folder)
        (folder / "run.json").write_text(json.dumps(to_dict(config)))
        optimizer = torch.optim.AdamW(parameter_groups(model, config.optim))
        sum(p.square().sum() for p in model.parameters() if p.requires_grad).backward()
        optimizer.step()
        writers = {path.name: partial(shutil.copyfile, path) for path in folder.iterdir() if path.is_file()}
        state = {"optimizer": named_state(optimizer, model)}
        checkpoint.save(folder, step, writers | {f"checkpoint-{step}.pt": partial(torch.save, state)})
    rows = [{"step": step, "itc": 4.1, "itc_chance": 4.1, "t2i": 0.01, "i2t": 0.01, "t2i_chance": 0.016,
             "i2t_chance": 0.016, "itm_acc": 0.66, "itm_acc_chance": 0.667, "grad_norm": 0.001, "grad_norm/text": 0.001,
             "logit_scale": 14.0, "gate/0.word_gate": 0.0, "lr": 1e-3} for step in range(1, 2002, 100)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def text(run, tmp_path_factory):
    """The page of that run."""
    out = tmp_path_factory.mktemp("page") / "deep" / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Line))
        assert main(["diagnose", str(run), "--out", str(out), "--images", "40"]) == 0
    return out.read_text(encoding="utf-8")


def test_the_page_is_whole_and_carries_everything(text):
    parsed = Whole(text)
    assert all(address.startswith(("#", "data:")) for address in parsed.addresses)
    assert "script" not in parsed.tags and "link" not in parsed.tags and "@import" not in text
    styles = re.findall(r"url\(([^)]*)\)", text)
    assert all(address.startswith("#") for address in styles)
    titles = [name for name in re.findall(r"<h2>(.*?)</h2>", text)]
    assert titles == ["At a glance", "Training", "Retrieval", "Features", "Memory", "Inside the network"]
    assert text.count("<figure") == text.count("<figcaption>") == text.count('role="img"') >= 23
    assert "About a thousandth is usual" in text  # how fast weights move: read from the checkpoints' optimizer
    assert "BitGen: run" in text and "40 of 500 images of scenes, val" in text


def test_the_page_knows_no_path_and_no_clock(text, run):
    assert str(run.parent) not in text and "20" + "26-" not in text


def test_the_same_model_gives_the_same_page(text, run):
    case = report.gather(str(run), images=40)
    for chapter in (report.summary(case), report.memory(case)):
        assert all(block in text for block in chapter.blocks)


def test_images_and_captions_share_a_map_by_umap_or_by_pca_which_says_why(run, monkeypatch):
    case = report.gather(str(run), images=20)
    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Line))
    assert "UMAP of 120 points, seed 0" in (block := report._joint(case)) and "20 images with their captions" in block
    assert "the background makes neighbours" in block and all(name in block for name in {
        scene["background"] for scene in case.truth})
    monkeypatch.setitem(sys.modules, "umap", None)
    case.gallery.image_features[0] += 0.1  # features that no cache knows
    assert "PCA: the axes hold" in (block := report._joint(case)) and "umap-learn is not installed" in block


def test_a_model_that_never_learned_looks_bad(text):
    assert 'class="BAD"' in text
    verdict = re.search(r'<li class="(\w+)"><b>\w+</b><span>contrast</span>', text)[1]
    assert verdict == "BAD"
    recall = float(re.search(r"text to image, R@1</span><b>([\d.]+)</b>", text)[1])
    assert recall < 0.15 and "chance 0.025" in text


def test_a_model_without_memory_history_and_settings_has_a_page_too(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Line))
    bare = tmp_path / "bare"
    shutil.copytree(run / "checkpoint-20", bare)
    settings = json.loads((bare / "config.json").read_text())
    settings["model"]["memory_slots"] = 0
    (bare / "config.json").write_text(json.dumps(settings))
    model = tiny_model(vocab_size=settings["model"]["vocab_size"], max_tokens=64, memory_slots=0)
    save_model(model, str(bare / "model.safetensors"))
    out = report.write(str(bare), tmp_path / "bare.html", images=3)
    text = out.read_text(encoding="utf-8")
    Whole(text)
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["At a glance", "Retrieval", "Features", "Inside the network"]


def test_captions_cannot_write_into_the_page():
    table = page.table(["<b>"], [["<script>alert(1)</script>"], [1234567], [0.12345], [True]], "a & b")
    assert "<script>" not in table and "&lt;script&gt;" in table and "1,234,567" in table and "0.123" in table
    assert "True" in table and "a &amp; b" in table
    lines = page.verdicts([("BAD", "<i>", '"', "&")])
    assert "<span>&lt;i&gt;</span>" in lines and "&quot;" in lines
    whole = page.page("<x>", "$y", [page.Section("<z>", "lead & more", [])])
    assert "<x>" not in whole and "<z>" not in whole and "$y" in whole


@pytest.mark.parametrize("arguments, message", [
    (["--images", "1"], "at least 2"), (["--checkpoint", "checkpoint-7"], "checkpoint-7"),
    (["--data", "nowhere"], "nowhere"),
])
def test_bad_input_is_one_line(run, tmp_path, capsys, arguments, message):
    assert main(["diagnose", str(run), "--out", str(tmp_path / "x.html"), *arguments]) == 65
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and not (tmp_path / "x.html").exists()


def test_other_data_are_split_as_the_runs_own_were(run, tmp_path, monkeypatch):
    """Or a page could show images that were trained on as if they had been held out."""
    copied = shutil.copytree(run, tmp_path / "run")
    settings = json.loads((copied / "run.json").read_text())
    settings["data"]["val_fraction"] = 0.2
    (copied / "run.json").write_text(json.dumps(settings))
    asked = []

    def stop(config, *_):
        asked.append(config)
        raise ValueError("far enough")

    monkeypatch.setattr("bitgen.case.open_data", stop)
    for data in ("photos", None):
        with pytest.raises(ValueError, match="far enough"):
            report.gather(str(copied), data=data)
    assert [(config.root, config.val_fraction) for config in asked] == [("photos", 0.2), ("scenes", 0.2)]
