"""What TensorBoard shows: all of it can be read back, is capped so that it opens, and nothing of the run is moved."""

import re

import numpy as np
import pytest
import torch
from conftest import tiny_model
from PIL import Image
from small_runs import config
from tensorboard.backend.event_processing.event_accumulator import DEFAULT_SIZE_GUIDANCE, EventAccumulator
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from bitgen import boards, projector
from bitgen.config import DataConfig, LossConfig
from bitgen.data import open_data
from bitgen.dataset import SCENES
from bitgen.encoded import Gallery
from bitgen.images import normalise
from bitgen.logs import LAYOUT, RunLog, read_metrics
from bitgen.probes import known_labels, probe
from bitgen.tokenizer import Tokenizer
from bitgen.trainer import Trainer

CURVES = {"val_total": 1.0, "itm": 0.5, "itc": 1.0, "text": 2.0, "grad_norm": 1.0, "lr": 0.1}


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """A tiny model, 20 scenes as its validation, and its log after two validations."""
    folder = tmp_path_factory.mktemp("boards")
    data = open_data(DataConfig(cache=str(folder / "cache"), scenes_train=20), "train", 32)
    tokenizer = Tokenizer.train([text for texts in data.captions for text in texts], 300)
    model = tiny_model(gates=0.1, vocab_size=tokenizer.vocab_size, max_tokens=64)
    model.tokenizer = tokenizer
    vision = model.vision_config
    with torch.no_grad():
        pixels = torch.stack([data.pixels(i, 32) for i in range(20)])
        images = model.encode_image(normalise(pixels, vision.mean, vision.std))
        texts = model.encode_text(*tokenizer.encode([text for texts in data.captions for text in texts], 64))
    gallery = Gallery(images, texts, torch.arange(20).repeat_interleave(5), list(range(20)))
    model.train()
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    log = RunLog(folder / "run")
    log.layout()
    for step in (10, 20):
        log.scalars(step, CURVES)
        boards.validated(log, step, model, gallery, data)
    boards.finished(log, 20, model, data, LossConfig())
    log.close()
    assert model.training and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    return folder / "run", gallery, data


def read(run) -> EventAccumulator:
    return EventAccumulator(str(run / "tensorboard"), size_guidance=dict.fromkeys(DEFAULT_SIZE_GUIDANCE, 0)).Reload()


def test_all_boards_can_be_read_back(validated):
    run, gallery, _ = validated
    tags = read(run).Tags()
    assert set(tags["images"]) == {"retrieval/answers", "features/similarity", "features/map", "features/probes",
                                   "activations/layers", "attention/spread", "attention/words", "memory/slots",
                                   "loss/gradients", "loss/landscape"}
    assert {"weights/vision", "cosine/others", "matching/hard negative", "memory/largest share of a fact"} <= set(
        tags["histograms"])
    assert "matching" in read(run).PluginTagToContent("pr_curves")
    others = [*tags["images"], *tags["histograms"], *tags["tensors"]]
    assert len(others) == len(set(others)) and not set(others) & set(tags["scalars"]), "one tag, one kind"
    assert [event.step for event in read(run).Images("features/map")] == [10, 20]
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == [10, 20] and rows[0]["val_total"] == 1.0
    gap = (gallery.image_features.mean(0) - gallery.text_features.mean(0)).norm().item()
    assert rows[0]["features/gap"] == pytest.approx(gap) and "features/width" not in rows[0]


def test_a_run_draws_after_each_validation_and_what_costs_more_once_at_its_end(tmp_path, monkeypatch, capsys):
    """The first validation's pictures are only counted."""
    asked, draw = [], boards.validated
    monkeypatch.setitem(SCENES, "val", 40)
    monkeypatch.setattr(boards, "validated", lambda log, step, *more: asked.append(step) or step == 2 and draw(
        log, step, *more))
    Trainer(config(tmp_path, "--optim.max-steps", "2", "--validate-every", "1")).fit()
    shown = read(tmp_path)
    assert asked == [1, 2] and {event.step for tag in shown.Tags()["images"] for event in shown.Images(tag)} == {2}
    assert {"memory/slots", "attention/words", "loss/gradients", "loss/landscape"} <= set(shown.Tags()["images"])
    assert (tmp_path / "curves.png").is_file() and "warning" not in capsys.readouterr().err


def test_precision_of_matching_is_that_of_its_pairs(tmp_path):
    log = RunLog(tmp_path)
    log.pr_curve("itm", torch.tensor([0.9, 0.8, 0.3, float("nan")]), torch.tensor([True, False, True, False]), 1)
    log.close()
    from tensorboard.util import tensor_util

    table = tensor_util.make_ndarray(read(tmp_path).Tensors("itm")[0].tensor_proto)          # (6, thresholds)
    right, wrong, _, missed, precision, recall = table
    assert (right[0], wrong[0], precision[0], recall[0]) == (2, 2, 0.5, 1.0)
    middle = table.shape[1] // 2
    assert (right[middle], wrong[middle], missed[middle]) == (1, 1, 1)


def test_cosines_of_others_are_of_others(validated):
    run, gallery, _ = validated
    histogram = read(run).Histograms("cosine/others")[0].histogram_value
    cosines = gallery.text_features @ gallery.image_features.T
    beside = torch.tensor([cosines[i, i // 5 - 1] for i in range(100)])                      # the image before its own
    assert histogram.num == 100 and histogram.sum == pytest.approx(beside.sum().item(), rel=1e-4)


def test_probes_are_those_of_the_scenes(validated):
    run, gallery, data = validated
    labels = known_labels(data, gallery.indices)
    found = probe(gallery.image_features, labels.values)
    colours = [i for i, kind in enumerate(labels.kinds) if kind == "colour"]
    for row in read_metrics(run):
        assert row["probe/colour"] == pytest.approx(found.auc[colours].mean().item())
        assert row["probe/shuffled labels"] == pytest.approx(found.shuffled.mean().item())
    charts = [tags for chart in LAYOUT["Inside"].items() for tags in chart[1] if "probe" in chart[0]]
    assert re.fullmatch(charts[0], "probe/colour")


def test_the_projector_has_a_thumbnail_and_a_line_for_each_row(validated):
    run, gallery, data = validated
    from google.protobuf import text_format

    config = text_format.Parse((run / "tensorboard" / projector.CONFIG).read_text(), ProjectorConfig())
    [embedding] = config.embeddings
    folder = run / "tensorboard"
    features = np.loadtxt(folder / embedding.tensor_path, delimiter="\t")
    lines = (folder / embedding.metadata_path).read_text().splitlines()
    assert embedding.tensor_name == "features, step 20" and features.shape == (40, 32)
    assert np.allclose(features[:20], gallery.image_features, atol=1e-4)
    assert np.allclose(features[20:], gallery.text_features[::5], atol=1e-4)
    assert lines[0] == "caption\twhat\timage" and len(lines) == 41
    assert lines[1] == f"{data.captions[0][0]}\timage\t{data.image_ids[0]}" and "\tcaption\t" in lines[21]
    side, _ = embedding.sprite.single_image_dim
    sprite = Image.open(folder / embedding.sprite.image_path)
    assert sprite.size == (7 * side, 7 * side)
    tile = np.asarray(sprite.crop((side, 0, 2 * side, side))).transpose(2, 0, 1)
    assert np.abs(tile.astype(int) - data.pixels(1, 32).numpy()).max() <= 1


def test_the_projector_is_capped_and_lines_stay_lines(tmp_path):
    pictures = [np.zeros((3, 4, 4), dtype=np.uint8)] * 1500
    projector.write(tmp_path, "many", np.zeros((1500, 2)), {"a": ["x\ty\nz"] * 1500, "b": ["1"] * 1500}, pictures)
    lines = (tmp_path / "projector/metadata.tsv").read_text().splitlines()
    assert len(lines) == 1001 and lines[1] == "x y z\t1"
    assert Image.open(tmp_path / "projector/sprite.png").size == (1024, 1024)
    projector.write(tmp_path, "one", np.zeros((2, 2)), {"a": ["x", "y"]}, pictures[:2])
    assert (tmp_path / "projector/metadata.tsv").read_text() == "x\ny\n"
    with pytest.raises(ValueError, match="as many of each"):
        projector.write(tmp_path, "few", np.zeros((2, 2)), {"a": ["x"]}, pictures[:2])


def test_one_validation_image_and_no_memory_are_enough(tmp_path, validated):
    _, gallery, data = validated
    tokenizer = Tokenizer.train([text for texts in data.captions for text in texts], 300)
    model = tiny_model(vocab_size=tokenizer.vocab_size, max_tokens=64, memory_slots=0)
    model.tokenizer = tokenizer
    one = Gallery(gallery.image_features[:1], gallery.text_features[:5], gallery.owner[:5], [0])
    log = RunLog(tmp_path)
    log.scalars(1, {"val_total": 1.0})
    boards.validated(log, 1, model, one, data)
    boards.finished(log, 1, model, data.first(1), LossConfig())
    shown = read(tmp_path).Tags()["images"]
    assert "retrieval/answers" in shown and "features/probes" not in shown and "loss/landscape" not in shown
