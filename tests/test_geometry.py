"""Geometry and probes against plain loops; unrelated features score chance, collapsed ones are seen as such."""

import math

import pytest
import torch
import torch.nn.functional as F

from bitgen import geometry as G
from bitgen import probes as P
from bitgen.scenes import render

OWNER = torch.arange(40).repeat_interleave(3)


def sphere(rows, width=24, seed=0):
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_numbers_follow_their_formulas():
    x, y = sphere(12), sphere(12, seed=1)
    pairs = [(i, j) for i in range(12) for j in range(i + 1, 12)]
    loop = math.log(sum(math.exp(-2 * float((x[i] - x[j]).square().sum())) for i, j in pairs) / len(pairs))
    assert G.uniformity(x) == pytest.approx(loop, abs=1e-5)
    loop = sum(float((x[i] - y[i]).square().sum()) for i in range(12)) / 12
    assert G.alignment(x, y) == pytest.approx(loop, abs=1e-5)
    assert G.modality_gap(x, y) == pytest.approx(math.dist(x.mean(0).tolist(), y.mean(0).tolist()), abs=1e-6)


def test_uniformity_of_many_features_takes_some_of_them():
    features = torch.nn.functional.normalize(torch.randn(5001, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    assert G.uniformity(features) == G.uniformity(features[::3])
    assert G.uniformity(features) == pytest.approx(G.uniformity(features[:2000]), abs=0.05)


def test_effective_rank_counts_directions():
    plane = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) @ torch.eye(2, 10)
    assert 1.5 < G.effective_rank(plane) <= 2 + 1e-6
    corners = torch.cat([torch.eye(8), -torch.eye(8)])
    assert G.effective_rank(corners) == pytest.approx(8)


def test_aligned_unrelated_and_collapsed_features_look_so():
    images = sphere(40)
    good = G.geometry(images, images[OWNER], OWNER)
    assert good["alignment"] == pytest.approx(0, abs=1e-6) and good["positive_cosine"] == pytest.approx(1)
    assert abs(good["negative_cosine"]) < 0.1 and good["gap"] < 1e-6
    unrelated = G.geometry(images, sphere(120, seed=2), OWNER)
    assert unrelated["alignment"] == pytest.approx(2, abs=0.2)
    assert unrelated["positive_cosine"] == pytest.approx(unrelated["negative_cosine"], abs=0.1)
    here, there = (F.normalize(images + shift * torch.eye(24)[0], dim=1) for shift in (2, -1))
    apart = G.geometry(here, there[OWNER], OWNER)
    assert apart["gap"] > 3 * apart["gap_noise"]
    assert good["gap_noise"] == pytest.approx(math.sqrt(2 / 20), rel=0.3), "of means of 20 unrelated rows"
    collapsed = G.geometry(torch.ones(40, 24), torch.ones(120, 24), OWNER)
    assert collapsed["rank_images"] == 0 and collapsed["uniformity_images"] == pytest.approx(0, abs=1e-5)
    assert collapsed["negative_cosine"] == pytest.approx(1, abs=1e-5)


def test_similarity_puts_captions_under_their_images():
    images = sphere(40)
    matrix = G.similarity(images, images[OWNER], OWNER, 16)
    assert matrix.shape == (16, 16) and torch.allclose(matrix.diagonal(), torch.ones(16))
    assert torch.allclose(matrix, images[:16] @ images[:16].T, atol=1e-6)


# Probes ---------------------------------------------------------------------------------------------------


def test_auc_counts_pairs():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 5, (30, 2), generator=generator).float()
    labels = torch.rand(30, 2, generator=generator) < 0.4
    for column, area in enumerate(P.auc(scores, labels)):
        yes, no = scores[labels[:, column], column], scores[~labels[:, column], column]
        loop = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in yes for b in no) / (len(yes) * len(no))
        assert area == pytest.approx(loop)
    assert P.auc(scores[:, :1], torch.ones(30, 1)).item() == 0.5


def test_a_probe_reads_what_is_there_and_nothing_else():
    features = sphere(300, 16)
    planted = features @ sphere(3, 16, seed=5).T > 0
    labels = torch.cat([planted, torch.rand(300, 40, generator=torch.Generator().manual_seed(1)) < 0.3], 1)
    found = P.probe(features, labels)
    assert (found.auc[:3] > 0.97).all()
    assert found.auc[3:].mean() == pytest.approx(0.5, abs=0.02)
    assert found.shuffled.mean() == pytest.approx(0.5, abs=0.02)
    permuted = labels[torch.randperm(300, generator=torch.Generator().manual_seed(1))]
    assert torch.equal(P.probe(features, permuted).auc, found.shuffled)
    assert P.probe(torch.ones(300, 16), planted).auc.tolist() == pytest.approx([0.5] * 3, abs=0.1)


def test_the_probe_is_ridge_regression():
    x, y, new = torch.randn(20, 3).double(), torch.randn(20, 2).double(), torch.randn(5, 3).double()
    centred = x - x.mean(0)
    penalty = (P.RIDGE * centred.square().sum(0).mean()).sqrt() * torch.eye(3).double()
    weights = torch.linalg.lstsq(torch.cat([centred, penalty]), torch.cat([y - y.mean(0), torch.zeros(3, 2)])).solution
    assert torch.allclose(P._ridge(x, y, new), (new - x.mean(0)) @ weights)


def test_scene_labels_say_what_is_in_the_scene(tmp_path):
    scenes = render("val", 100, size=32, cache=tmp_path)
    labels = P.scene_labels(scenes.truth)
    assert labels.values.shape == (100, len(labels.names)) and len(labels.kinds) == len(labels.names)
    red = labels.values[:, labels.names.index("red")].tolist()
    assert red == [any(thing["colour"] == "red" for thing in scene["objects"]) for scene in scenes.truth]
    assert set(labels.kinds) == {"colour", "shape", "size", "texture", "background", "relation", "count"}
    pairs = P.pair_labels(scenes.truth)
    assert all(5 <= count <= 95 for count in pairs.values.sum(0).tolist()) and "pair" in pairs.kinds


def test_word_labels_take_words_that_split_the_images():
    captions = [["a Dog runs", "the dog"], ["green grass"], ["Green dogs"]] * 10
    labels = P.word_labels(captions, 2)
    assert set(labels.names) == {"dogs", "grass"} and labels.values.sum(0).tolist() == [10, 10]
    assert P.word_labels([["same words"]] * 20).values.shape == (0, 0)


@pytest.mark.parametrize("call, message", [
    (lambda: P.probe(torch.ones(20, 2), torch.ones(19, 1)), "got 20 and 19"),
    (lambda: P.probe(torch.ones(4, 2), torch.ones(4, 1)), "at least 10 rows"),
    (lambda: P.probe(torch.full((20, 2), torch.nan), torch.ones(20, 1)), "NaN"),
    (lambda: G.geometry(torch.ones(40, 2), torch.ones(119, 2), OWNER), "119 captions"),
])
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
