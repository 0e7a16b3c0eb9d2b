"""Training learns, by whichever losses there are, and the same settings teach the same to the bit."""

import math

import pytest
import torch
from conftest import same_weights
from layouts import memory
from small_runs import config, one_step

from bitgen import snapshot
from bitgen.logs import read_metrics
from bitgen.optimizer import load_named_state
from bitgen.trainer import Trainer
from bitgen.validation import validate

pytestmark = pytest.mark.usefixtures("quick_runs")


@pytest.mark.parametrize("rates", [["--optim.muon", "False", "--optim.decoder-lr", "2e-3"], []])
def test_training_learns_to_tell_images_apart(tmp_path, rates):
    settings = ["--optim.max-steps", "40", "--optim.lr", "2e-3", "--save-every", "40", "--validate-every", "40",
                "--data.scenes-train", "512", "--data.captions-per-image", "1", "--optim.batch-size", "32",
                "--loss.momentum", "0.9", "--loss.text", "0.5", "--loss.itm", "0.5", "--log-every", "1000"]
    found = Trainer(config(tmp_path, *settings, *rates)).fit()
    assert found["t2i_r10"] > 2 * found["chance_t2i_r10"]
    assert found["text_nll"] < 0.6 * math.log(512)


def test_two_seeds_differ_and_one_seed_repeats(run, tmp_path):
    first = read_metrics(run)[0]["total"]
    again, other = (float(one_step(Trainer(config(tmp_path, "--seed", seed)))["total"]) for seed in "01")
    assert again == first != other


def test_training_repeats_to_the_bit_on_two_threads(tmp_path):
    def trained():
        trainer, threads = Trainer(config(tmp_path)), torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            for _ in range(2):
                one_step(trainer)
        finally:
            torch.set_num_threads(threads)
        return trainer.model

    assert same_weights(trained(), trained())


def test_sums_are_made_in_one_order_as_long_as_a_run_trains(tmp_path, monkeypatch):
    modes = []
    monkeypatch.setattr(Trainer, "_loop", lambda self: modes.append(torch.get_deterministic_debug_mode()))
    Trainer(config(tmp_path)).fit()
    assert modes == [1] and torch.get_deterministic_debug_mode() == 0


@pytest.mark.parametrize("off", [["--loss.text", "0"], ["--loss.itm", "0"], ["--loss.itc", "0"],
                                 ["--loss.memory-kl", "0"], ["--model.memory-slots", "0"],
                                 ["--loss.itm", "0", "--loss.text", "0", "--model.memory-slots", "0"]])
def test_a_run_without_one_of_its_losses_learns_by_the_others(tmp_path, off):
    """Its part then has no gradient, which is nothing to stumble over."""
    trainer = Trainer(config(tmp_path, *off))
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    assert all(math.isfinite(one_step(trainer)["total"]) for _ in range(2))
    moved = {name.split(".")[0] for name, weight in trainer.model.named_parameters() if not weight.equal(before[name])}
    assert {"vision", "text"} <= moved and ("decoder" in moved) == ("--loss.text" not in off)
    found, _ = validate(trainer.weights, trainer.config, memory(12), trainer.tokenizer, trainer.accelerator)
    assert math.isfinite(found["total"])
    state = snapshot.take(tmp_path, trainer.objective, trainer.optimizer, trainer.accelerator, {})
    load_named_state(trainer.optimizer, trainer.model, state["optimizer"])
