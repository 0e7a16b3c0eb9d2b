"""Rows of two processes joined: values, offsets and gradients, where they have different numbers of rows."""

import pytest
import torch
import torch.distributed as dist

from bitgen.processes import gathered, offset, summed

ROWS = (3, 5)


def rows(rank):
    return torch.randn(ROWS[rank], 2, generator=torch.Generator().manual_seed(rank))


def loss(x, rank):
    """Weighs rows by their place and by the process."""
    return (x * (torch.arange(len(x))[:, None] + 10 * rank + 1)).square().sum()


def process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mine = rows(rank).requires_grad_()
    joined = gathered(mine)
    loss(joined, rank).backward()
    torch.save({"joined": joined.detach(), "gradient": mine.grad, "offset": offset(len(mine)),
                "whole": gathered(torch.full((ROWS[rank],), rank)), "sum": summed(torch.tensor([rank + 1.0]))},
               f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
def test_two_processes_with_different_numbers_of_rows(tmp_path):
    torch.multiprocessing.spawn(process, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    whole = torch.cat([rows(0), rows(1)]).requires_grad_()
    (loss(whole, 0) + loss(whole, 1)).backward()  # a row counts in the loss of both
    for rank, start in enumerate((0, ROWS[0])):
        assert torch.equal(found[rank]["joined"], whole)
        torch.testing.assert_close(found[rank]["gradient"], whole.grad[start: start + ROWS[rank]])
        assert found[rank]["offset"] == start and found[rank]["sum"] == 3
        assert found[rank]["whole"].tolist() == [0] * ROWS[0] + [1] * ROWS[1]


def test_one_process_keeps_what_it_has():
    x = rows(0)
    assert gathered(x) is x and summed(x) is x and offset(7) == 0
