"""Runs repeat to the bit, whatever the threads of a busy computer do."""

import threading

import pytest
import torch

from bitgen.randomness import repeatable


@pytest.fixture
def busy():
    """Four threads for torch, on a computer that has other things to do."""
    before, stop = torch.get_num_threads(), threading.Event()
    torch.set_num_threads(4)

    def work():
        while not stop.is_set():
            torch.rand(64, 64) @ torch.rand(64, 64)

    others = [threading.Thread(target=work) for _ in range(2)]
    for other in others:
        other.start()
    yield
    stop.set()
    for other in others:
        other.join()
    torch.set_num_threads(before)


def gradient(rows, index, weight):
    rows = rows.clone().requires_grad_()
    (rows[index] * weight).sum().backward()
    return rows.grad


def test_gradients_of_repeated_rows_are_the_same_every_time(busy):
    torch.manual_seed(0)
    case = torch.randn(8, 64), torch.randint(8, (6000,)), torch.randn(6000, 64)
    with repeatable(torch.device("cpu")):
        first = gradient(*case)
        assert all(torch.equal(gradient(*case), first) for _ in range(20))


@pytest.mark.parametrize("device, mode", [("cpu", 1), ("cuda", 0), ("mps", 0)])
def test_it_holds_for_a_cpu_and_only_while_it_lasts(device, mode):
    fill = torch.utils.deterministic.fill_uninitialized_memory
    with pytest.raises(RuntimeError, match="stop"), repeatable(torch.device(device)):
        assert torch.get_deterministic_debug_mode() == mode
        raise RuntimeError("stop")
    assert torch.get_deterministic_debug_mode() == 0
    assert torch.utils.deterministic.fill_uninitialized_memory == fill
