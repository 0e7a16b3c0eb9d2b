"""Queue, momentum copy and hard negatives: what they hold, how they move, whom they never name."""

import pytest
import torch
from torch import nn

from bitgen.negatives import FeatureQueue, MomentumCopy, hard_negatives


def numbered(start, count, width=2):
    """Pairs whose features and words are their number."""
    ids = torch.arange(start, start + count)
    features = ids[:, None].float().expand(count, width)
    return features, -features, ids, 1000 + ids, ids[:, None].expand(count, 16), 1 + ids % 5


def test_queue_starts_empty_and_grows():
    queue = FeatureQueue(6, 2, 16)
    assert [len(x) for x in queue.held()] == [0, 0, 0, 0]
    queue.enqueue(*numbered(1, 4))
    for held, given in zip(queue.held(), numbered(1, 4)[:4], strict=True):
        torch.testing.assert_close(held, given)


@pytest.mark.parametrize("batches", [[4, 4], [4, 4, 4], [6, 6], [5, 1, 3], [3, 9], [20]])
def test_queue_holds_the_newest_pairs_across_its_end(batches):
    queue, done = FeatureQueue(6, 2, 16), 0
    for size in batches:
        queue.enqueue(*numbered(done, size))
        done += size
    image, text, image_ids, caption_ids = queue.held()
    assert set(image_ids.tolist()) == set(range(done - 6, done))
    torch.testing.assert_close(image[:, 0], image_ids.float())                     # the parts of a pair stay together
    torch.testing.assert_close(text[:, 1], -image_ids.float())
    assert torch.equal(caption_ids, image_ids + 1000)
    words, real = queue.captions(torch.arange(6))
    assert words.shape == (6, 8) and torch.equal(words[:, 0], image_ids)
    assert torch.equal(real.sum(1), 1 + image_ids % 5)
    assert torch.equal(words[real], image_ids.repeat_interleave(real.sum(1)))
    assert queue.captions(torch.tensor([2]), least=13)[0].shape == (1, 16)


def test_a_queue_that_wrapped_drops_the_oldest_next():
    queue = FeatureQueue(6, 2, 16)
    for start in (0, 4):
        queue.enqueue(*numbered(start, 4))
    queue.enqueue(*numbered(8, 1))
    assert set(queue.held()[2].tolist()) == {3, 4, 5, 6, 7, 8}


def test_a_saved_queue_goes_on_where_it_was():
    queue, copy = FeatureQueue(6, 2, 16), FeatureQueue(6, 2, 16)
    queue.enqueue(*numbered(0, 8))
    copy.load_state_dict(queue.state_dict())
    for each in (queue, copy):
        each.enqueue(*numbered(8, 3))
    assert all(torch.equal(a, b) for a, b in zip(queue.held(), copy.held()))


def test_queue_keeps_no_graph():
    queue = FeatureQueue(4, 2, 16)
    features = torch.randn(2, 2, requires_grad=True)
    queue.enqueue(features, features, *numbered(0, 2)[2:])
    assert not queue.held()[0].requires_grad


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("written", torch.zeros(2))


def test_momentum_copy_is_a_warmed_up_moving_average():
    model = Counter()
    momentum = MomentumCopy(model, decay=0.5)
    expected = torch.zeros(3)
    for step in range(6):
        with torch.no_grad():
            model.weight += torch.tensor([1.0, -2.0, 0.5])
        momentum.update(model)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        torch.testing.assert_close(momentum.model.weight.data, expected)
    assert momentum.updates.item() == 6 and "updates" in momentum.state_dict()


def test_momentum_copy_takes_buffers_as_they_are():
    model = Counter()
    momentum = MomentumCopy(model, decay=0.99)
    model.written.fill_(7)
    momentum.update(model)
    assert (momentum.model.written == 7).all()


def test_momentum_copy_never_learns_and_never_drops_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    momentum = MomentumCopy(model, 0.9).train()
    assert not any(p.requires_grad for p in momentum.parameters())
    assert not any(m.training for m in momentum.modules())
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert momentum.model[0].weight.data_ptr() != model[0].weight.data_ptr()


def test_hard_negatives_follow_the_softmax_of_similarity():
    torch.manual_seed(0)
    scores = torch.tensor([1.0, 0.0, -1.0, 2.0, 5.0])
    allowed = torch.tensor([True, True, True, True, False])
    draws = 20000
    rows, columns = hard_negatives(scores.expand(draws, 5), allowed.expand(draws, 5))
    assert torch.equal(rows, torch.arange(draws))
    seen = torch.bincount(columns, minlength=5) / draws
    expected = torch.cat([scores[:4].softmax(0), torch.zeros(1)])
    deviation = (expected * (1 - expected) / draws).sqrt()
    assert seen[4] == 0 and ((seen - expected).abs() <= 4 * deviation).all()


def test_hard_negatives_never_name_what_is_not_allowed_however_similar():
    torch.manual_seed(0)
    allowed = ~torch.eye(8, dtype=torch.bool)
    allowed[:, 3] = False
    similarity = 100 * torch.eye(8) - 100.0
    similarity[:, 3] = 100
    for _ in range(50):
        rows, columns = hard_negatives(similarity, allowed)
        assert allowed[rows, columns].all()


def test_rows_without_a_candidate_get_none():
    allowed = torch.tensor([[False, True], [False, False], [True, False]])
    rows, columns = hard_negatives(torch.zeros(3, 2), allowed)
    assert rows.tolist() == [0, 2] and columns.tolist() == [1, 0]
    for shape in ((1, 1), (4, 4)):
        rows, columns = hard_negatives(torch.zeros(shape), torch.zeros(shape, dtype=torch.bool))
        assert len(rows) == len(columns) == 0


def test_hard_negatives_of_broken_similarities_do_not_stop_the_step():
    """A non-finite loss is skipped and counted by whoever trains; drawing must live long enough to get there."""
    similarity = torch.full((3, 3), torch.nan)
    rows, columns = hard_negatives(similarity, ~torch.eye(3, dtype=torch.bool))
    assert rows.tolist() == [0, 1, 2] and ((columns >= 0) & (columns < 3)).all()
