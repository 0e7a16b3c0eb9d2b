"""Recall: against loops written from the definition, at chance for models that know nothing, and for bad input."""

import itertools
import math

import pytest
import torch

from bitgen import retrieval
from bitgen.retrieval import chance, compare, folds, interval, nearest, rank_features, ranks, recall_at_k, rerank

KEYS = {f"{way}_{what}" for way in ("i2t", "t2i") for what in ("r1", "r5", "r10", "median_rank")}


def gallery(counts, width=16, noise=1.0, seed=0):
    """Random images, and captions (`counts` an image) near theirs: (N, D), (M, D), (M,)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(len(counts), width, generator=generator)
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    owner = owner[torch.randperm(len(owner), generator=generator)]
    return images, images[owner] + noise * torch.randn(len(owner), width, generator=generator), owner


def test_a_matrix_ranked_by_hand():
    scores = torch.tensor([[0.9, 0.1, 0.8, 0.2],   # captions 0 and 1 belong to image 0: first place
                           [0.3, 0.5, 0.4, 0.1]])  # captions 2 and 3 to image 1: second place, behind caption 1
    i2t, t2i = ranks(scores, [0, 0, 1, 1])
    assert i2t.ranks.tolist() == [1, 2]
    assert t2i.ranks.tolist() == [1, 2, 2, 2]
    assert i2t.report("i2t", (1, 2)) == {"i2t_r1": 0.5, "i2t_r2": 1.0, "i2t_median_rank": 1.5}


def test_agrees_with_loops_over_sorted_lists():
    images, texts, owner = gallery([3, 1, 5, 2, 5, 4, 1, 1, 2, 3, 5, 5], noise=2.0)
    found = recall_at_k(images, texts, owner.tolist(), ks=(1, 3))
    scores = torch.nn.functional.normalize(images, dim=1) @ torch.nn.functional.normalize(texts, dim=1).T
    i2t = [min(p for p, c in enumerate(row.argsort(descending=True), 1) if owner[c] == i)
           for i, row in enumerate(scores)]
    t2i = [(scores[:, c].argsort(descending=True) == owner[c]).nonzero().item() + 1 for c in range(len(owner))]
    for name, places in {"i2t": i2t, "t2i": t2i}.items():
        assert found[f"{name}_r1"] == pytest.approx(sum(p <= 1 for p in places) / len(places))
        assert found[f"{name}_r3"] == pytest.approx(sum(p <= 3 for p in places) / len(places))
        assert found[f"{name}_median_rank"] == torch.tensor(places).double().quantile(0.5).item()
    assert 0 < found["t2i_r1"] < 1


def test_all_keys_and_nothing_else():
    images, texts, owner = gallery([5] * 12)
    assert set(recall_at_k(images, texts, owner)) == KEYS | {f"chance_{key}" for key in KEYS}


def test_perfect_features_score_one():
    images, _, owner = gallery([5] * 30)
    found = recall_at_k(images, images[owner], owner)
    assert all(found[key] == 1.0 for key in KEYS)


@pytest.mark.parametrize("counts", [[5] * 200, [1] * 9, [1, 2, 3, 4] * 20])
def test_a_collapsed_model_scores_exactly_chance(counts):
    images, texts, owner = gallery(counts)
    found = recall_at_k(torch.ones_like(images), torch.ones_like(texts), owner)
    for key in KEYS - {"i2t_median_rank"}:
        assert found[key] == pytest.approx(found[f"chance_{key}"], abs=1e-9), key
    assert found["i2t_median_rank"] >= found["chance_i2t_median_rank"]


def test_rounding_of_equal_features_is_a_tie():
    images, texts, owner = gallery([1] * 100)
    images = torch.ones_like(images) + 1e-8 * images
    assert recall_at_k(images, images[owner] + 1e-8 * texts, owner)["t2i_r1"] == pytest.approx(0.01)


def test_a_random_model_scores_about_chance():
    seeds = [gallery([5] * 60, width=64, noise=1e6, seed=seed) for seed in range(60)]
    found = retrieval.mean_report([recall_at_k(*each) for each in seeds])
    for key in ("i2t_r10", "t2i_r10", "i2t_r5"):
        assert found[key] == pytest.approx(found[f"chance_{key}"], rel=0.2), key
    assert found["i2t_median_rank"] == pytest.approx(found["chance_i2t_median_rank"], rel=0.2)


def test_chance_is_that_of_all_orders():
    owner = [0, 0, 0, 1, 1, 2]
    found = chance(owner, 3, ks=(1, 2, 3))
    places = [[min(p for p, c in enumerate(order, 1) if owner[c] == image)
               for order in itertools.permutations(range(6))] for image in range(3)]
    for k in (1, 2, 3):
        expected = sum(p <= k for row in places for p in row) / sum(map(len, places))
        assert found[f"chance_i2t_r{k}"] == pytest.approx(expected)
        assert found[f"chance_t2i_r{k}"] == pytest.approx(k / 3)
    flat = sorted(p for row in places for p in row)
    assert found["chance_i2t_median_rank"] == (flat[len(flat) // 2] + flat[len(flat) // 2 - 1]) / 2
    assert found["chance_t2i_median_rank"] == 2


def test_chance_of_five_captions_by_the_formula():
    found = chance([i // 5 for i in range(5000)], 1000)
    assert found["chance_i2t_r10"] == pytest.approx(1 - math.comb(4995, 10) / math.comb(5000, 10))
    assert found["chance_t2i_r1"] == pytest.approx(0.001)
    assert found["chance_t2i_median_rank"] == 500.5


def test_ties_are_those_of_all_orders():
    scores = torch.tensor([[0.9, 0.5, 0.5, 0.5, 0.5, 0.1]])
    own = torch.tensor([[False, True, False, True, False, False]])
    ranking = compare(scores, own)
    places = [1 + min(order.index(i) + 1 for i in (0, 2)) for order in itertools.permutations(range(4))]
    assert ranking.ranks.item() == pytest.approx(sum(places) / len(places))
    for k in range(1, 6):
        assert ranking.hits(k).item() == pytest.approx(sum(p <= k for p in places) / len(places))


def test_ties_of_large_scores_are_as_wide_as_float32_rounds_them():
    scores, own = torch.tensor([[1000.0, 1000.0005, 1000.01]]), torch.tensor([[True, False, False]])
    assert compare(scores, own).tied.item() == compare(scores, own).better.item() == 1


def test_chunks_do_not_matter():
    images, texts, owner = gallery([5] * 20)
    whole, parts = rank_features(images, texts, owner), rank_features(images, texts, owner, chunk=3)
    assert all(torch.equal(a.ranks, b.ranks) for a, b in zip(whole, parts))


def test_features_agree_with_their_scores():
    images, texts, owner = gallery([5] * 20)
    scores = torch.nn.functional.normalize(images, dim=1) @ torch.nn.functional.normalize(texts, dim=1).T
    for a, b in zip(rank_features(images, texts, owner), ranks(scores, owner)):
        assert torch.equal(a.ranks, b.ranks)


def test_order_of_captions_does_not_matter():
    images, texts, owner = gallery([1, 2, 5, 3] * 5, noise=2.0)
    order = torch.randperm(len(owner), generator=torch.Generator().manual_seed(1))
    assert recall_at_k(images, texts, owner) == pytest.approx(recall_at_k(images, texts[order], owner[order]))


def test_folds_are_the_mean_over_smaller_galleries():
    images, texts, owner = gallery([5] * 25, noise=2.0)
    found = folds(images, texts, owner, size=10)
    parts = [(owner >= start) & (owner < start + 10) for start in (0, 10)]  # five images are left over
    each = [recall_at_k(images[s:s + 10], texts[part], owner[part] - s) for s, part in zip((0, 10), parts)]
    assert found["t2i_r1"] == pytest.approx((each[0]["t2i_r1"] + each[1]["t2i_r1"]) / 2)
    assert found["chance_t2i_r1"] == pytest.approx(0.1)
    with pytest.raises(ValueError, match="gallery of 25"):
        folds(images, texts, owner, size=26)


def test_interval_covers_the_truth_and_knows_clusters():
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(200).repeat_interleave(5)
    alone = (torch.rand(1000, generator=generator) < 0.3).double()
    together = (torch.rand(200, generator=generator) < 0.3).double().repeat_interleave(5)
    low, high = interval(alone, owner)
    assert low < 0.3 < high and high - low == pytest.approx(2 * 1.96 * math.sqrt(0.21 / 1000), rel=0.2)
    wide = interval(together, owner)
    assert wide[1] - wide[0] > 1.8 * (high - low)
    assert interval(together, owner) == wide
    assert interval(torch.ones(10), list(range(10))) == (1.0, 1.0)


@pytest.mark.parametrize("level, deviations", [(0.95, 1.96), (0.68, 0.994)])
def test_interval_is_as_wide_as_its_level_says(level, deviations):
    owner = torch.arange(300).repeat_interleave(2)
    hits = (torch.rand(600, generator=torch.Generator().manual_seed(0)) < 0.3).double()
    deviation = (hits.view(300, 2).mean(1).var() / 300).sqrt().item()
    low, high = interval(hits, owner, level)
    assert high - low == pytest.approx(2 * deviations * deviation, rel=0.07)
    assert (low + high) / 2 == pytest.approx(hits.mean().item(), abs=0.1 * deviation)


@pytest.mark.parametrize("change, message", [
    (lambda i, t, o: (i[0], t, o), "image_features: expected shape"),
    (lambda i, t, o: (i[:0], t, o), "image_features: expected shape"),
    (lambda i, t, o: (i[:, :3], t, o), "3 wide and text_features 16"),
    (lambda i, t, o: (i, t, o[:-1]), "each of 20 captions"),
    (lambda i, t, o: (i, t, o + 1), "outside \\[0, 4\\)"),
    (lambda i, t, o: (i, t, o - 1), "-1 is outside"),
    (lambda i, t, o: (i, t, o.clamp(max=2)), "1 of 4 images have no caption, the first is 3"),
    (lambda i, t, o: (i, t, o.float()), "whole numbers"),
    (lambda i, t, o: (i * float("nan"), t, o), "image_features: 4 of 4 rows hold NaN"),
    (lambda i, t, o: (i, t / 0, o), "text_features: 20 of 20 rows"),
])
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        recall_at_k(*change(*gallery([5] * 4)))


def test_arrays_of_numpy_are_features_too():
    images, texts, owner = torch.eye(3), torch.eye(3).repeat_interleave(2, 0), torch.arange(3).repeat_interleave(2)
    assert recall_at_k(images.numpy(), texts.numpy(), owner.numpy()) == recall_at_k(images, texts, owner)


def test_indices_of_images_come_in_any_whole_type():
    images, texts, owner = gallery([1] * 256)
    assert recall_at_k(images, texts, owner.to(torch.uint8)) == recall_at_k(images, texts, owner)


@pytest.mark.parametrize("scale", [1e20, 1e36, 1e-20, 1e-38, 2.0**-140])
def test_the_length_of_features_does_not_matter(scale):
    images, texts, owner = gallery([2] * 20)
    found = recall_at_k(images.round() * scale, (9 * texts).round() * scale, owner)
    assert found == recall_at_k(images.round(), (9 * texts).round(), owner) and found["t2i_r1"] > 0.2


def test_features_of_usual_length_are_the_same_to_the_bit():
    images = gallery([1] * 50)[0] * torch.logspace(-3, 3, 50)[:, None]
    images[0] = 0
    assert torch.equal(retrieval.check_features(images, "images"), torch.nn.functional.normalize(images, dim=1))


@pytest.mark.parametrize("ks", [(1.0, 5), torch.tensor([1, 5]), torch.tensor([1, 5]).numpy(), [1, 5]])
def test_whole_numbers_come_in_any_type(ks):
    assert recall_at_k(*gallery([1] * 9), ks=ks) == recall_at_k(*gallery([1] * 9), ks=(1, 5))


@pytest.mark.parametrize("ks", [5, None, (), (math.nan,), (math.inf,), (1.5,), ("1",), (None,), torch.tensor(3)])
def test_what_is_no_list_of_whole_numbers_is_refused(ks):
    with pytest.raises(ValueError, match="ks: expected whole numbers from 1, got"):
        recall_at_k(*gallery([1] * 4), ks=ks)


def test_bad_k_and_bad_scores_are_named():
    with pytest.raises(ValueError, match="ks: .*0"):
        recall_at_k(*gallery([1] * 4), ks=(0, 1))
    with pytest.raises(ValueError, match="scores: .*1 non-finite"):
        ranks(torch.tensor([[0.0, float("nan")]]), [0, 0])
    with pytest.raises(ValueError, match="scores: .*\\(2,\\)"):
        ranks(torch.zeros(2), [0, 0])


def test_nearest_are_the_first_of_the_sorted_list():
    images, texts, _ = gallery([5] * 20)
    scores, indices = nearest(images, texts, 7, chunk=3)
    whole = torch.nn.functional.normalize(images, dim=1) @ torch.nn.functional.normalize(texts, dim=1).T
    assert torch.equal(indices, whole.argsort(dim=1, descending=True)[:, :7])
    assert torch.allclose(scores, whole.gather(1, indices))
    assert nearest(images, texts, 500)[1].shape == (20, 100)


def test_reranking_by_hand():
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.1], [0.9, 0.8, 0.7, 0.1], [0.9, 0.8, 0.1, 0.7]])
    own = torch.tensor([[False, True, False, False], [True, False, False, True], [False, False, True, False]])
    first, new = compare(scores, own), torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    assert first.ranks.tolist() == [2, 1, 4]
    assert rerank(first, new, own[:, :2]).ranks.tolist() == [1, 2, 4]  # up, down, and not among the first two
    assert rerank(first, scores[:, :2], own[:, :2]).ranks.tolist() == [2, 1, 4]


def test_ties_that_the_first_candidates_cut_through_are_those_left_behind_them():
    scores, own = torch.tensor([[0.9, 0.5, 0.5, 0.5, 0.5, 0.1]]), torch.tensor([[False] * 3 + [True] + [False] * 2])
    found = rerank(compare(scores, own), torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool))
    assert found.ranks.item() == 4.5 and found.hits(4).item() == 0.5, "fourth or fifth: two of five were looked at"


def test_reranking_a_collapsed_model_scores_chance():
    images, texts, owner = gallery([5] * 40)
    images, texts = torch.ones_like(images), torch.ones_like(texts)
    rankings = rank_features(images, texts, owner)
    candidates = nearest(images, texts, 8)[1], nearest(texts, images, 8)[1]
    own = owner[candidates[0]] == torch.arange(40)[:, None], candidates[1] == owner[:, None]
    for name, ranking, right in zip(("i2t", "t2i"), rankings, own):
        found = rerank(ranking, torch.zeros(right.shape), right)
        for k in (1, 5):
            assert found.hits(k).mean() == pytest.approx(chance(owner, 40)[f"chance_{name}_r{k}"], rel=0.3)


def test_half_precision_features_are_compared_in_float32():
    images, _, owner = gallery([1] * 50)
    assert recall_at_k(images.bfloat16(), images[owner].bfloat16(), owner)["t2i_r1"] == 1.0


def test_autocast_changes_nothing():
    images, texts, owner = gallery([5] * 200, noise=2.0)
    with torch.autocast("cpu", torch.bfloat16):
        found, near = recall_at_k(images, texts, owner), nearest(images, texts, 5)
    assert found == recall_at_k(images, texts, owner)
    assert torch.equal(near[0], nearest(images, texts, 5)[0])


def test_recall_has_intervals_that_hold_it_and_shrink():
    generator = torch.Generator().manual_seed(0)

    def features(images):
        x = torch.randn(images, 8, generator=generator)
        return x, (x + 0.9 * torch.randn(images, 8, generator=generator)), torch.arange(images)

    small, large = (recall_at_k(*features(count), intervals=(1, 5)) for count in (20, 400))
    for report in (small, large):
        for name in ("i2t_r1", "t2i_r5"):
            assert report[f"{name}_low"] <= report[name] <= report[f"{name}_high"]
    assert large["t2i_r1_high"] - large["t2i_r1_low"] < small["t2i_r1_high"] - small["t2i_r1_low"]
    assert large["chance_t2i_r1"] == pytest.approx(1 / 400)


def test_the_captions_of_an_image_are_drawn_together():
    """They fail together here: their interval is that of 50 images, wider than that of 250 captions by sqrt(5)."""
    images, owner = torch.eye(50), torch.arange(50).repeat_interleave(5)
    found = recall_at_k(images, images[(owner + owner % 2) % 50], owner, intervals=[1])      # of every second image
    assert "t2i_r5" in found and "t2i_r5_low" not in found
    assert found["t2i_r1_high"] - found["t2i_r1_low"] == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 50), rel=0.1)


def test_the_first_caption_of_each_image():
    owner = torch.tensor([0, 0, 1, 2, 2, 2])
    assert retrieval.firsts(owner, 3).tolist() == [0, 2, 3] and retrieval.firsts(owner, 2).tolist() == [0, 2]
