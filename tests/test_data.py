"""Batches are a pure function of (seed, epoch, step), bad images or not."""

from pathlib import Path

import pytest
import torch
from layouts import SIZE, colour, config, memory, texts

from bitgen.data import BatchSampler, Collator, open_data, stable_hash
from bitgen.images import to_uint8
from bitgen.tokenizer import Tokenizer

FLICKR = Path(__file__).resolve().parents[2] / "shared" / "data" / "flickr8k"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([text for i in range(20) for text in texts(i)], 300)


def test_an_epoch_visits_each_image_once():
    sampler = BatchSampler(103, 10, seed=0)
    assert sampler.epoch_steps == 10
    seen = [i for step in range(10) for i in sampler.batch(0, step)]
    assert len(seen) == len(set(seen)) == 100 and set(seen) <= set(range(103))
    assert seen != [i for step in range(10) for i in sampler.batch(1, step)]


def test_batches_are_a_function_of_seed_epoch_and_step():
    order = [BatchSampler(50, 8, seed=3).batch(epoch, step) for epoch in range(3) for step in range(6)]
    sampler = BatchSampler(50, 8, seed=3)
    back = [sampler.batch(epoch, step) for epoch in reversed(range(3)) for step in reversed(range(6))]
    assert back[::-1] == order
    assert BatchSampler(50, 8, seed=4).batch(0, 0) != order[0]


def test_processes_share_the_batch_of_one():
    whole = BatchSampler(50, 12, seed=0)
    parts = [BatchSampler(50, 4, seed=0, rank=rank, world=3) for rank in range(3)]
    assert {part.epoch_steps for part in parts} == {whole.epoch_steps}
    for step in range(whole.epoch_steps):
        assert sum((part.batch(1, step) for part in parts), []) == whole.batch(1, step)


def test_too_few_images_for_a_batch():
    with pytest.raises(ValueError, match="batch_size"):
        BatchSampler(7, 4, seed=0, world=2)
    with pytest.raises(IndexError):
        BatchSampler(8, 4, seed=0).batch(0, 2)


def same(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in (
        "pixel_values", "input_ids", "attention_mask", "image_index", "image_ids", "caption_ids"))


def test_a_batch(tokenizer):
    batch = Collator(memory(), tokenizer, SIZE, 2, seed=0, max_tokens=32)([4, 1, 7], epoch=0)
    assert batch.pixel_values.shape == (3, 3, SIZE, SIZE) and batch.pixel_values.dtype == torch.uint8
    assert [tuple(x[:, 0, 0].tolist()) for x in batch.pixel_values] == [colour(i) for i in (4, 1, 7)]
    assert batch.image_index.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.input_ids.shape[0] == 6 and batch.input_ids.shape[1] % 8 == 0
    decoded = [tokenizer.decode(row) for row in batch.input_ids]
    for text, image in zip(decoded, (4, 4, 1, 1, 7, 7), strict=True):
        assert text.startswith(f"caption {image} ")
    assert len(set(decoded)) == 6
    assert batch.image_ids.tolist() == [stable_hash(f"{i}.png") for i in (4, 1, 7)]
    assert same(batch.to("cpu"), batch)


def test_captions_are_drawn_by_seed_epoch_and_index(tokenizer):
    dataset = memory()
    first, again = (Collator(dataset, tokenizer, SIZE, 2, seed=0) for _ in range(2))
    again([1, 2, 3], epoch=5)  # what was made before does not matter
    assert same(first([4, 1], epoch=2), again([4, 1], epoch=2))
    assert torch.equal(first([4, 1], epoch=2).caption_ids[:2], first([9, 4], epoch=2).caption_ids[2:])
    chosen = {tuple(first([4], epoch=epoch).caption_ids.tolist()) for epoch in range(20)}
    assert len(chosen) > 5 and len({one for some in chosen for one in some}) == 5


def test_all_captions_in_their_order(tokenizer):
    batch = Collator(memory(), tokenizer, SIZE, None, seed=0)([0, 3])
    assert [tokenizer.decode(row) for row in batch.input_ids] == [f"caption {i} {j}" for i in (0, 3) for j in range(5)]


def test_fewer_captions_than_asked_for(tokenizer):
    batch = Collator(memory(captions=1), tokenizer, SIZE, 3, seed=0)([0, 3])
    assert batch.image_index.tolist() == [0, 1]


def test_first_captions_of_each_image(tokenizer):
    dataset = memory()
    dataset.captions[3] = dataset.captions[3][:1]
    batch = Collator(dataset, tokenizer, SIZE, None, seed=0)([0, 3, 5])
    some = batch.first_captions(2)
    assert some.image_index.tolist() == [0, 0, 1, 2, 2] and some.image_ids is batch.image_ids
    assert [tokenizer.decode(row) for row in some.input_ids] == [
        "caption 0 0", "caption 0 1", "caption 3 0", "caption 5 0", "caption 5 1"]
    kept = [0, 1, 5, 6, 7]
    assert torch.equal(some.caption_ids, batch.caption_ids[kept])
    assert torch.equal(some.attention_mask, batch.attention_mask[kept])
    assert same(batch.first_captions(5), batch) and batch.first_captions(None) is batch


def test_equal_captions_have_equal_ids(tokenizer):
    dataset = memory(count=2)
    dataset.captions[0], dataset.captions[1] = ["A dog  runs"], ["a dog runs "]
    ids = Collator(dataset, tokenizer, SIZE, None, seed=0)([0, 1]).caption_ids
    assert ids[0] == ids[1]


def test_a_hash_is_the_same_everywhere():
    assert stable_hash("0.png") == -7894433674887843837


def test_bad_images_are_replaced_by_a_function_of_seed_epoch_and_index(tokenizer):
    dataset = memory(count=40, bad={3, 5, 8})
    collator = Collator(dataset, tokenizer, SIZE, 2, seed=0)
    batch = collator([3, 4, 5, 8], epoch=1)
    assert len(batch.pixel_values) == 4 and batch.image_ids[1] == stable_hash("4.png")
    assert collator.bad == batch.bad == {f"{i}.png": f"{i}.png: broken" for i in (3, 5, 8)}
    assert {stable_hash(f"{i}.png") for i in (3, 5, 8)}.isdisjoint(batch.image_ids.tolist())
    for b, image_id in enumerate(batch.image_ids.tolist()):  # captions are those of the image that came in
        i = next(i for i in range(40) if stable_hash(f"{i}.png") == image_id)
        assert tokenizer.decode(batch.input_ids[2 * b]).startswith(f"caption {i} ")
    other = Collator(dataset, tokenizer, SIZE, 2, seed=0)
    other([8, 1], epoch=0)
    assert same(other([3, 4, 5, 8], epoch=1), batch)
    assert torch.equal(other([8, 3], epoch=1).image_ids, batch.image_ids[[3, 0]])
    assert not collator([3, 5], epoch=1).bad  # each is told of once


def test_where_nothing_can_be_read_there_is_no_stand_in(tokenizer):
    with pytest.raises(ValueError, match="no readable image"):
        Collator(memory(count=5, bad=set(range(5))), tokenizer, SIZE, 2, seed=0)([0])


@pytest.mark.skipif(not FLICKR.is_dir(), reason="the photos are not here")
def test_real_photos(tmp_path, tokenizer):
    pytest.importorskip("pyarrow")
    dataset = open_data(config(FLICKR, tmp_path), "val", 112)
    assert len(dataset) == 1000 and not dataset.bad and all(len(some) == 5 for some in dataset.captions)
    assert torch.equal(dataset.pixels(7, 112), to_uint8(dataset[7].image, 112))
    batch = Collator(dataset, tokenizer, 112, 3, seed=0, max_tokens=64)(range(16))
    assert batch.pixel_values.shape == (16, 3, 112, 112) and len(batch.input_ids) == 48
    assert not set(dataset.image_ids) & set(open_data(config(FLICKR, tmp_path, limit=100), "train", 112).image_ids)
