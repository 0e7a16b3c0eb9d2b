"""Training and the Hub: a run is pushed while it trains, goes on elsewhere to the bit, and does not need the Hub."""

import os
import shutil
import signal
import time
from dataclasses import replace

import layouts
import pytest
import torch
import transformers
from conftest import TOWER
from small_runs import TINY, config, differences, state_of, steady

from bitgen import accounting
from bitgen.checkpoint import verify
from bitgen.checks import CHECKS
from bitgen.cli import main
from bitgen.exits import Stop
from bitgen.facts import data_settings
from bitgen.health import read_facts, read_history
from bitgen.logs import read_metrics
from bitgen.tokenizer import Tokenizer
from bitgen.trainer import Trainer

REPO = "org/name"
pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("quick_runs")]  # each push is a process of its own


def test_a_run_goes_on_elsewhere_from_the_hub_to_the_bit(hub, run, tmp_path, capsys, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_validated", lambda self: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stop) as stop:
            Trainer(config(here, "--hub.repo", REPO, "--hub.push-every", "2", "--validate-every", "4")).fit()
    assert stop.value.code == 143
    assert main(["push", str(here), "--repo", REPO]) == 0                            # what there was no time for
    shutil.rmtree(here)
    capsys.readouterr()
    Trainer(config(there, "--resume", f"hub://{REPO}", "--hub.repo", REPO)).fit()
    assert f"{REPO} on the Hub holds checkpoint-6" in capsys.readouterr().err
    assert differences(state_of(run, 6), state_of(there, 6)) == ["/progress/pushed", "/metrics"]
    assert (run / "model.safetensors").read_bytes() == (there / "model.safetensors").read_bytes()
    assert [steady(line) for line in read_metrics(run)] == [steady(line) for line in read_metrics(there)]
    costs = [accounting.read(folder) for folder in (run, there)]
    assert [cost["samples"] for cost in costs] == [96, 96] and [cost["sessions"] for cost in costs] == [1, 2]
    files = hub.files(REPO)
    assert files["model.safetensors"] == (there / "model.safetensors").read_bytes()
    assert {"README.md", "checkpoint-4/checkpoint-4.pt", "checkpoint-6/checkpoint-6.pt"} <= files.keys()
    assert torch.load(there / "checkpoint-6" / "checkpoint-6.pt", weights_only=True)["progress"]["step"] == 6


def test_no_path_of_this_computer_goes_to_the_hub(hub, tmp_path):
    """Nor does it stand in the card; on this computer a checkpoint still knows its data."""
    photos, tower, words = tmp_path / "photos", tmp_path / "tower", tmp_path / "words"
    layouts.csv_file(photos, 64)
    (photos / "images" / "3.png").write_bytes(b"broken")
    transformers.Dinov2Model(transformers.Dinov2Config(**TOWER, image_size=32)).save_pretrained(tower)
    Tokenizer.train(["a photo"], 257).save(words)
    run = config(tmp_path / "run", "--data.root", str(photos), "--data.image-root", str(photos / "images"),
                 "--data.cache", str(tmp_path / "cache"), "--data.tokenizer", str(words), "--vision.pretrained",
                 str(tower), "--data.max-bad-fraction", "0.5", "--optim.max-steps", "2", "--hub.repo", REPO)
    Trainer(run).fit()
    assert main(["push", str(tmp_path / "run"), "--repo", "org/again"]) == 0
    state = torch.load(tmp_path / "run/checkpoint-2/checkpoint-2.pt", weights_only=True)
    assert list(state["progress"]["unreadable"].values()) == ["3.png: no JPEG, PNG, WEBP, GIF, BMP picture"]
    for name, data in (hub.files(REPO) | hub.files("org/again")).items():
        assert str(tmp_path).encode() not in data, name
    for source in (tmp_path / "run", tmp_path / "run" / "checkpoint-2"):
        assert data_settings(str(source), None, None).root == str(photos)
    shutil.rmtree(tower)
    Trainer(replace(run, resume="auto", optim=replace(run.optim, max_steps=3))).fit()


def test_a_run_that_goes_on_elsewhere_lets_its_old_checkpoints_rotate_out(hub, tmp_path, monkeypatch):
    """And no other run's."""
    monkeypatch.setattr(Trainer, "_validated", lambda self: False)
    here, there, hubbed = tmp_path / "here", tmp_path / "there", ["--hub.repo", REPO, "--hub.keep", "2"]
    hub.seed(REPO, {"checkpoint-1/MANIFEST.json": b"{}"})
    for step in ("2", "3", "4"):
        Trainer(config(here, *hubbed, "--optim.max-steps", step, "--resume", "auto")).fit()
    held = lambda: {name.split("/")[0] for name in hub.files(REPO) if "/" in name}  # noqa: E731
    assert held() == {"checkpoint-1", "checkpoint-3", "checkpoint-4"}
    shutil.rmtree(here)
    Trainer(config(there, *hubbed, "--resume", f"hub://{REPO}")).fit()
    assert held() == {"checkpoint-1", "checkpoint-4", "checkpoint-6"}


def test_the_log_tells_what_is_on_the_hub_and_the_doctor_reads_it(hub, tmp_path, monkeypatch):
    step = Trainer._train_step
    def patiently(trainer, batches):  # noqa: E306
        while trainer.step == 5 and not trainer.saver.landed():
            time.sleep(0.05)
        return step(trainer, batches)
    monkeypatch.setattr(Trainer, "_train_step", patiently)
    Trainer(config(tmp_path, "--hub.repo", REPO, "--hub.push-every", "2")).fit()
    told = [line["hub_step"] for line in read_metrics(tmp_path)]
    assert told[:2] == [0, 0] and told[-1] in (2, 4)
    published = next(check for check in CHECKS if check.name == "Hub").measure
    assert published(read_history(tmp_path), read_facts(tmp_path)).value == told[-1]
    assert "README.md" in hub.files(REPO)


def test_a_hub_that_is_down_costs_the_exit_status_alone(tmp_path, capsys, monkeypatch):
    for name, value in {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_stub", "HF_HUB_OFFLINE": "0",
                        "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("bitgen.trainer.PUSHING", 1.0)
    settings = ["--output-dir", str(tmp_path), "--hub.repo", REPO, "--hub.push-every", "2", "--optim.max-steps", "4",
                "--hub.private", "True"]
    assert main(["train", *TINY, *settings]) == 75
    told = capsys.readouterr().err
    assert "cannot be asked" in told and f"{REPO} on the Hub holds no checkpoint of this run, not checkpoint-4" in told
    assert f"bitgen push {tmp_path} --repo {REPO} --private\n" in told
    verify(tmp_path / "checkpoint-4")
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_a_run_that_may_not_push_does_not_begin(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert main(["train", *TINY, "--output-dir", str(tmp_path / "run"), "--hub.repo", REPO]) == 65
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and REPO in told
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_run_that_ended_without_a_hub_is_pushed_when_resumed_with_one(hub, tmp_path):
    settings = ["--optim.max-steps", "2", "--save-every", "2"]
    Trainer(config(tmp_path, *settings)).fit()
    Trainer(config(tmp_path, *settings, "--resume", "auto", "--hub.repo", REPO)).fit()
    assert "checkpoint-2/MANIFEST.json" in hub.files(REPO)
