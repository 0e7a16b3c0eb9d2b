"""The state of a run: what is not whole or not finite is refused, what cannot be the same is said."""

import json
import os
import shutil
import signal
import zlib
from contextlib import nullcontext

import pytest
import torch
from small_runs import config, differences, state_of, steady

from bitgen import checkpoint, snapshot
from bitgen.exits import Stop
from bitgen.health import Verdict
from bitgen.images import BadImage
from bitgen.journal import Journal
from bitgen.logs import METRICS, read_metrics
from bitgen.trainer import Trainer

pytestmark = pytest.mark.usefixtures("quick_runs")


def taken(trainer):
    return snapshot.take(trainer.folder, trainer.objective, trainer.optimizer, trainer.accelerator, {"step": 1})


@pytest.mark.parametrize("place", ["weight", "buffer", "moment"])
def test_what_is_not_finite_is_not_saved(run, place):
    trainer = Trainer(config(run, "--resume", "auto"))
    trainer._resume()
    taken(trainer)
    spoilt = {"weight": trainer.model.logit_scale, "buffer": trainer.model.memory.usage,
              "moment": next(iter(trainer.optimizer.state.values()))["exp_avg_sq"]}[place]
    with torch.no_grad():
        spoilt.fill_(float("inf"))
    with pytest.raises(Stop, match="1 tensors hold NaN or infinity") as stop:
        taken(trainer)
    assert stop.value.code == 76


def test_other_threads_are_allowed_and_said(run, capsys):
    trainer, threads = Trainer(config(run, "--resume", "auto")), torch.get_num_threads()
    trainer._resume()
    assert "not bit-exact" not in capsys.readouterr().err
    torch.set_num_threads(threads + 1)
    try:
        trainer._resume()
    finally:
        torch.set_num_threads(threads)
    assert f"not bit-exact: threads {threads} -> {threads + 1}" in capsys.readouterr().err


@pytest.mark.parametrize("change, told", [(["--model.memory-slots", "8"], "model.memory_slots 32 -> 8"),
                                          (["--optim.muon", "False"], "optim.muon True -> False"),
                                          (["--model.fusion-gates", "False"], "model.fusion_gates True -> False"),
                                          (["--vision.trainable", "1"], "vision.trainable all -> 1"),
                                          (["--vision.image-size", "40"], "vision.image_size 32 -> 40"),
                                          (["--loss.queue", "0"], "loss.queue 64 -> 0"),
                                          (["--loss.queue", "32"], "loss.queue 64 -> 32"),
                                          (["--loss.momentum", "0"], "loss.momentum .* -> 0.0")])
def test_another_size_or_optimizer_is_the_settings_fault_not_the_checkpoints(run, change, told):
    before = (run / "run.json").read_bytes()
    with pytest.raises(ValueError, match=f"cannot resume .* or another optimizer: {told}; leave"):
        Trainer(config(run, "--resume", "auto", *change)).fit()
    assert (run / "run.json").read_bytes() == before


def test_patches_are_hidden_as_the_resumed_run_is_told(run):
    trainer = Trainer(config(run, "--resume", "auto", "--vision.patch-dropout", "0.5", "--loss.momentum", "0.9"))
    assert trainer.config.vision.patch_dropout == trainer.model.vision.patch_dropout == 0.5
    assert trainer.model.vision_config.tower and trainer.model.vision_config.name == "dinov2-nano"


@pytest.mark.parametrize("spoil, reason", [
    (lambda state: state.pop("random"), "'random' is missing"),
    (lambda state: state["random"][0].pop("torch"), "'torch' is missing"),
    (lambda state: state["random"][0].update(torch=torch.zeros(3, dtype=torch.uint8)), "RuntimeError"),
    (lambda state: state["objective"].popitem(), "Missing key"),
    (lambda state: state["optimizer"]["param_groups"].pop(), "of other weights"),
])
def test_a_state_that_is_not_whole_is_refused(run, tmp_path, spoil, reason):
    trainer = Trainer(config(run, "--resume", "auto"))
    state = torch.load(run / "checkpoint-6" / "checkpoint-6.pt", weights_only=True)
    spoil(state)
    folder = checkpoint.save(tmp_path, 6, {"checkpoint-6.pt": lambda path: torch.save(state, path)})
    with pytest.raises(Stop, match="not whole") as stop:
        snapshot.restore(folder, tmp_path, trainer.objective, trainer.optimizer, trainer.accelerator)
    assert stop.value.code == 3 and reason in str(stop.value)


def test_metrics_lost_in_a_crash_come_back_from_the_checkpoint(run, tmp_path):
    whole = (run / METRICS).read_bytes()
    path = tmp_path / METRICS
    for held in (None, b"", whole[:100], b"?" * len(whole)):
        if held is not None:
            path.write_bytes(held)
        snapshot._put_back(whole, tmp_path)
        assert path.read_bytes() == whole
    path.write_bytes(whole + b"later")
    snapshot._put_back(whole, tmp_path)
    assert path.read_bytes() == whole + b"later"  # the log cuts that off by itself


def test_metrics_that_unpack_to_more_than_any_log_are_refused(run, tmp_path, monkeypatch):
    trainer = Trainer(config(run, "--resume", "auto"))
    state = torch.load(run / "checkpoint-6" / "checkpoint-6.pt", weights_only=True)
    monkeypatch.setattr(snapshot, "LOG", 10_000)
    for size, told in ((10_001, "more than 10,000 bytes"), (10_000, "")):
        packed = zlib.compress(bytes(size))
        state["metrics"] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
        folder = checkpoint.save(tmp_path, 6, {"checkpoint-6.pt": lambda path: torch.save(state, path)})
        with pytest.raises(Stop, match=f"not whole.*{told}") if told else nullcontext():
            snapshot.restore(folder, tmp_path, trainer.objective, trainer.optimizer, trainer.accelerator)
    state["metrics"] = state["metrics"][:-1]
    folder = checkpoint.save(tmp_path, 6, {"checkpoint-6.pt": lambda path: torch.save(state, path)})
    with pytest.raises(Stop, match="not whole.*cut off"):
        snapshot.restore(folder, tmp_path, trainer.objective, trainer.optimizer, trainer.accelerator)


def test_a_damaged_checkpoint_that_was_asked_for_by_name_is_refused(tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(Stop, match="MANIFEST.json is missing") as stop:
        snapshot.find(str(tmp_path / "checkpoint-1"), tmp_path)
    assert stop.value.code == 3
    with pytest.raises(Stop, match="none of the 1 checkpoints") as stop:
        snapshot.find("auto", tmp_path)
    assert snapshot.find("auto", tmp_path / "empty") is None and snapshot.find(None, tmp_path) is None


def test_what_is_no_checkpoint_at_all_is_told_from_a_damaged_one(tmp_path):
    (tmp_path / "run" / "checkpoint-7").mkdir(parents=True)
    for wanted, told in ((tmp_path / "gone", "no such folder"), (tmp_path / "run", "a run folder.*checkpoint-7")):
        with pytest.raises(ValueError, match=told):
            snapshot.find(str(wanted), tmp_path)


def test_unreadable_images_are_named_once_whatever_is_resumed(tmp_path, monkeypatch):
    settings = ["--data.max-bad-fraction", "0.5", "--save-every", "2"]
    for steps, resume in ((2, []), (4, ["--resume", "auto"])):
        trainer = Trainer(config(tmp_path, *settings, "--optim.max-steps", str(steps), *resume))
        pixels = trainer.train_data.pixels

        def broken(i, size, pixels=pixels):
            if i % 10 == 0:
                raise BadImage(f"number {i}")
            return pixels(i, size)

        monkeypatch.setattr(trainer.train_data, "pixels", broken)
        trainer.fit()
    named = [json.loads(line)["image"] for line in (tmp_path / "bad_images.jsonl").read_text().splitlines()]
    assert len(named) == len(set(named)) == read_metrics(tmp_path)[-1]["bad_images"] > 2


def test_a_hopeless_run_ends_with_a_checkpoint_where_that_is_wanted(tmp_path, monkeypatch):
    verdict = Verdict("contrast", 5.0, "BAD", "rule", "meaning", "remedy", 5.0, 1, True)
    monkeypatch.setattr(Journal, "hopeless", verdict)
    with pytest.raises(Stop, match="after step 1: BAD contrast") as stop:
        Trainer(config(tmp_path, "--stop-on", "bad")).fit()
    assert stop.value.code == 77 and checkpoint.newest(tmp_path)[0].name == "checkpoint-1"


def test_a_resumed_run_is_the_run_that_never_stopped(run, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_validated", lambda self: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stop, match="signal 15 after step 4") as stop:
            Trainer(config(tmp_path, "--validate-every", "4", "--save-every", "100")).fit()
    assert stop.value.code == 143
    Trainer(config(tmp_path, "--resume", "auto")).fit()
    ended, resumed = state_of(run, 6), state_of(tmp_path, 6)
    assert differences(ended, resumed) == ["/metrics"]                               # how long things took
    assert [steady(line) for line in read_metrics(run)] == [steady(line) for line in read_metrics(tmp_path)]
    weights = (run / "model.safetensors").read_bytes()
    assert weights == (tmp_path / "model.safetensors").read_bytes()


def test_resuming_passes_over_a_damaged_checkpoint_and_says_so(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    damaged = tmp_path / "run" / "checkpoint-6" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    trainer = Trainer(config(tmp_path / "run", "--resume", "auto"))
    assert trainer.resume_from.name == "checkpoint-3"
    told = capsys.readouterr().err
    assert "checkpoint-6" in told and "model.safetensors" in told


def test_a_run_killed_before_its_last_weights_were_published_publishes_them(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.copy(run / "checkpoint-3" / "model.safetensors", tmp_path / "run" / "model.safetensors")
    Trainer(config(tmp_path / "run", "--resume", "auto")).fit()
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_a_resumed_run_needs_neither_the_pretrained_folder_nor_the_tokenizer_again(run, tmp_path):
    changed = config(run, "--resume", "auto", "--vision.pretrained", str(tmp_path / "gone"),
                     "--data.tokenizer", str(tmp_path / "gone"))
    assert Trainer(changed).model.vision.image_size == 32


def test_a_resumed_run_keeps_the_normalisation_that_its_tower_brought(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    brought = ["--vision.mean", "0.5", "0.5", "0.5"]
    for file in (tmp_path / "run").rglob("run.json"):
        saved = json.loads(file.read_text())
        file.write_text(json.dumps(saved | {"vision": saved["vision"] | {"mean": [0.5, 0.5, 0.5]}}))
    for folder in (tmp_path / "run").glob("checkpoint-*"):
        (folder / checkpoint.MANIFEST).unlink()
        checkpoint._seal(folder, int(folder.name[11:]), int(folder.name[11:]))
    resumed = Trainer(config(tmp_path / "run", "--resume", "auto"))
    assert resumed.config.vision.mean == (0.5, 0.5, 0.5)
    Trainer(config(tmp_path / "run", "--resume", "auto", *brought))
    with pytest.raises(ValueError, match="vision.mean"):
        Trainer(config(tmp_path / "run", "--resume", "auto", "--vision.mean", "0.4", "0.4", "0.4"))


def test_a_resumed_optimizer_has_the_settings_of_now(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    now = ["--optim.weight-decay", "0.3", "--optim.betas", "0.5", "0.6", "--optim.muon-momentum", "0.1",
           "--optim.decoder-lr", "0.002", "--optim.vision-lr", "1e-4"]  # other groups too
    longer = ["--optim.epochs", "8", "--optim.max-steps", "7"]
    trainer = Trainer(config(tmp_path / "run", "--resume", "auto", *longer, *now))
    noted = {name: dict(value) for name, value in state_of(tmp_path / "run", 6)["optimizer"]["state"].items()}
    trainer.fit()
    assert trainer.step == 7
    groups = trainer.optimizer.param_groups
    assert {group["weight_decay"] for group in groups} == {0.0, 0.3}
    assert {group["betas"] for group in groups if not group["muon"]} == {(0.5, 0.6)}
    assert {group["momentum"] for group in groups if group["muon"]} == {0.1}
    steps = {int(value["step"]) for value in noted.values() if "step" in value}
    assert steps == {6} and {int(value["step"]) for value in trainer.optimizer.state.values() if "step" in value} == {7}
