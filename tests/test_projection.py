"""Features in the plane: PCA against its definition, UMAP's promises, and saying so where PCA stands in for it."""

import hashlib
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from bitgen.projection import aligned, pca, project


def cloud(points=40, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(points, width, generator=generator) * torch.tensor([5.0, 3.0, 1.0, 0.5, 0.2, 0.1])[:width]


def silent(message):
    pass


def test_pca_is_the_eigenvectors_of_the_covariance():
    features = cloud().double()
    plane = pca(features)
    values, vectors = torch.linalg.eigh(torch.cov(features.T))
    assert torch.allclose(plane.shares, values.flip(0)[:2] / values.sum())
    assert torch.allclose((plane.axes @ vectors.flip(1)[:, :2]).abs(), torch.eye(2, dtype=torch.float64), atol=1e-9)
    largest = plane.axes.abs().argmax(1)
    assert (plane.axes[torch.arange(2), largest] > 0).all()


def test_pca_places_new_points_and_does_not_flip():
    features = cloud()
    plane = pca(features)
    assert np.array_equal(plane.project(features[:7]), plane.project(features)[:7])
    assert np.allclose(pca(-features).project(-features), -plane.project(features), atol=1e-5)
    shuffled = torch.randperm(len(features), generator=torch.Generator().manual_seed(1))
    assert np.allclose(pca(features[shuffled]).project(features), plane.project(features), atol=1e-5)


def test_pca_repeats_to_the_bit_in_another_process():
    code = ("import torch, hashlib; from bitgen.projection import pca\n"
            "x = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))\n"
            "print(hashlib.sha256(pca(x).project(x).tobytes()).hexdigest())")
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    assert there.strip() == hashlib.sha256(pca(x).project(x).tobytes()).hexdigest()


@pytest.mark.parametrize("features", [torch.ones(20, 4), torch.zeros(1, 4), torch.ones(3, 1)])
def test_points_that_span_no_plane_lie_at_one_place(features):
    plane = pca(features)
    assert np.array_equal(plane.project(features), np.zeros((len(features), 2), dtype=np.float32))
    assert not plane.shares.any()


def test_the_note_says_how_much_variance_is_shown():
    assert project(cloud(), say=silent).note == "PCA: the axes hold 71% and 26% of the variance"


def test_umap_gives_way_to_pca_below_sixteen_points():
    said = []
    found = project(cloud(15), "umap", say=said.append)
    assert found.method == "pca" and "at least 16 points and has 15" in said[0] and said[0] in found.note


def test_umap_gives_way_to_pca_where_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "umap", None)
    said = []
    found = project(cloud(), "umap", cache=tmp_path, say=said.append)
    assert found.method == "pca" and "bitgen[viz]" in found.note and "not installed" in said[-1]
    assert np.array_equal(found.points, project(cloud()).points)


def test_umap_is_asked_once_for_the_same_content(monkeypatch, tmp_path):
    asked = []

    class Counting:
        def __init__(self, **settings):
            asked.append(settings)

        def fit_transform(self, features):
            torch.set_num_threads(threads + 1)  # as the real one does
            return np.full((len(features), 2), len(asked), dtype=np.float32)

    threads = torch.get_num_threads()
    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Counting))
    said = []
    first = project(cloud(), "umap", cache=tmp_path, say=said.append)
    again = project(cloud().double(), "umap", cache=tmp_path, say=said.append)
    assert first.method == "umap" and np.array_equal(first.points, again.points)
    assert torch.get_num_threads() == threads, "a run that is trained afterwards is the same to the bit"
    assert asked == [{"n_neighbors": 15, "min_dist": 0.1, "metric": "cosine", "random_state": 0, "n_jobs": 1}]
    assert len(said) == 1 and "up to a minute" in said[0]
    changed = cloud()
    changed[0, 0] += 1e-3
    project(changed, "umap", cache=tmp_path, say=silent)
    project(cloud(), "umap", seed=1, cache=tmp_path, say=silent)
    assert len(asked) == 3 and len(list((tmp_path / "projections").iterdir())) == 3


def test_alignment_undoes_turning_and_mirroring():
    points = cloud(30, 2).numpy()
    turned = points @ np.array([[0.6, -0.8], [-0.8, -0.6]], dtype=np.float32) + 3
    assert np.allclose(aligned(turned, points), points, atol=1e-4)


@pytest.mark.parametrize("call, message", [
    (lambda: project(cloud(), "tsne"), "expected 'pca' or 'umap', got 'tsne'"),
    (lambda: project(torch.ones(3)), r"shape \(3,\)"),
    (lambda: project(torch.zeros(0, 4)), r"shape \(0, 4\)"),
    (lambda: project(torch.full((3, 3), torch.nan)), "NaN"),
    (lambda: aligned(np.zeros((3, 2)), np.zeros((4, 2))), "the same"),
])
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
