"""The training loop: it learns, resumes to the bit, survives bad numbers, signals and disks, and says so."""

import json
import math
import shutil
import subprocess
import sys

import pytest
import torch
from accelerate.utils import DistributedType
from layouts import memory
from safetensors.torch import load_file
from small_runs import TINY, config, differences, mute, one_step, state_of
from torch.nn.utils import get_total_norm

from bitgen import checkpoint
from bitgen.cli import main
from bitgen.exits import Stop
from bitgen.hub import load
from bitgen.journal import Journal
from bitgen.logs import read_metrics
from bitgen.optimizer import schedule
from bitgen.randomness import random_state
from bitgen.trainer import Trainer
from bitgen.validation import validate

pytestmark = pytest.mark.usefixtures("quick_runs")
SILENT = ["--log-every", "1000"]  # all but the first step and the last


@pytest.fixture
def unvalidated(monkeypatch):
    """Nothing is validated: it would take most of a short run's time."""
    monkeypatch.setattr(Trainer, "_validated", lambda self: False)


@pytest.fixture
def find(monkeypatch):
    """Says which losses validations find, one after the other."""
    def found(*losses):
        left = iter(losses)
        monkeypatch.setattr("bitgen.trainer.validate", lambda *_: ({"total": next(left)}, None))
        monkeypatch.setattr(Journal, "validated", lambda *_: None)
    return found


def test_the_run_folder_holds_what_the_layout_promises(run):
    root = {path.name for path in run.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json", "metrics.jsonl",
            "tensorboard", "checkpoint-3", "checkpoint-6"} <= root
    held = {path.name for path in (run / "checkpoint-6").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "metrics.json", "checkpoint-6.pt"} <= held
    checkpoint.verify(run / "checkpoint-6")
    for source in (run, run / "checkpoint-6"):
        model, processor = load(source)
        features = model.encode_text(**processor(text=["a red ring above a blue square"]))
        assert features.shape == (1, 64) and torch.allclose(features.norm(dim=1), torch.ones(1), atol=1e-5)


def test_what_is_saved_to_be_used_is_the_average_of_the_weights(run):
    weights, kept = load_file(run / "model.safetensors"), state_of(run, 6)["objective"]
    assert differences(weights, {name: kept[f"momentum.model.{name}"] for name in weights}) == []
    assert differences(weights, {name: kept[f"model.{name}"] for name in weights}) != []


def test_every_loss_is_logged_beside_its_chance_level(run):
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    pairs = {"itc": "itc_chance", "t2i": "t2i_chance", "itm_acc": "itm_acc_chance", "text_nll": "text_chance"}
    for line in lines:
        assert all(math.isfinite(line[name]) and math.isfinite(line[chance]) for name, chance in pairs.items())
        assert line["grad_norm"] > 0 and line["grad_norm/vision"] > 0
        assert 0 < line["memory_utilization"] <= 1 and 1 <= line["address_perplexity"] <= 32
    assert lines[0]["t2i_chance"] == pytest.approx(1 / 16)
    assert {"val_t2i_r1", "val_chance_t2i_r1", "val_total"} <= lines[-1].keys()


def test_validation_looks_for_a_leak_of_the_decoder(run):
    [row] = [line for line in read_metrics(run) if "val_t2i_r1" in line]
    assert row["val_text_dealt"] > row["val_text_dealt_chance"] > 0


def test_a_step_with_a_non_finite_loss_changes_no_weight_and_too_many_stop_the_run(tmp_path, monkeypatch):
    trainer = Trainer(config(tmp_path, "--optim.max-skipped", "3"))
    clean = trainer.feed.prepare
    monkeypatch.setattr(trainer.feed, "prepare", lambda batch, number: spoiled(clean(batch, number)))
    before = {name: value.clone() for name, value in trainer.objective.state_dict().items()}
    with pytest.raises(Stop, match="3 steps in a row") as stop:
        trainer.fit()
    assert stop.value.code == 76
    after = trainer.objective.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_skipped_step_is_counted_also_between_logged_ones(tmp_path, unvalidated, monkeypatch):
    trainer = Trainer(config(tmp_path, "--log-every", "3", "--save-every", "6"))
    clean = trainer.feed.prepare
    monkeypatch.setattr(trainer.feed, "prepare",
                        lambda batch, number: (spoiled if number in (1, 4) else lambda b: b)(clean(batch, number)))
    trainer.fit()
    assert [(line["step"], line["skipped"], line["skipped_in_all"]) for line in read_metrics(tmp_path)] == [
        (1, 0, 0), (3, 0, 1), (6, 0, 2)]
    assert state_of(tmp_path, 6)["progress"]["skipped_in_all"] == 2


def test_the_gradient_is_logged_as_it_was_before_clipping_and_moves_weights_as_it_is_after(run, tmp_path, monkeypatch):
    trainer, moved = Trainer(config(tmp_path, "--optim.clip", "1e-3")), []
    monkeypatch.setattr(trainer.optimizer, "step", lambda: moved.append(
        get_total_norm([weight.grad for weight in trainer.model.parameters() if weight.grad is not None])))
    report = {name: float(value) for name, value in one_step(trainer).items()}
    assert report["grad_norm"] == read_metrics(run)[0]["grad_norm"] > 0.1
    parts = [value for name, value in report.items() if name.startswith("grad_norm/")]
    assert math.hypot(*parts) == pytest.approx(report["grad_norm"], rel=0.02)
    assert moved == [pytest.approx(1e-3, rel=0.01)]


def test_each_group_moves_at_the_schedules_share_of_its_own_rate(tmp_path):
    trainer = Trainer(config(tmp_path, "--optim.vision-lr", "1e-4"))
    trainer.step = 3
    one_step(trainer)
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {
        peak * schedule(3, 6, 50) for peak in (1e-4, 2e-3, 8e-3)}


def test_processes_that_find_different_checkpoints_do_not_train(tmp_path, monkeypatch):
    """As on nodes that share no disk: one would go on from a model that the others do not have."""
    monkeypatch.setattr("bitgen.trainer.gather_object", lambda found: [*found, "checkpoint-4"])
    with pytest.raises(ValueError, match=r"find different checkpoints in .* \(None, checkpoint-4\): put output_dir on"):
        Trainer(config(tmp_path, "--resume", "auto"))


@pytest.mark.parametrize("workers", ["0", "2"])
def test_too_many_unreadable_images_stop_a_run_whoever_meets_them(workers, tmp_path, monkeypatch, capsys):
    """Three of sixty may be broken; of six, no worker alone meets more than four."""
    data = memory(60, bad=range(0, 60, 10), captions=2, max_bad_fraction=0.05)
    monkeypatch.setattr("bitgen.trainer.open_data", lambda *_: data)
    settings = ["--data.max-bad-fraction", "0.05", "--data.workers", workers, "--optim.batch-size", "4",
                *(f"--{what}-every=1000" for what in ("log", "validate", "save"))]
    assert main(["train", *TINY, "--output-dir", str(tmp_path), *settings, "--optim.max-steps", "30"]) == 65
    told = capsys.readouterr().err
    assert "4 of 60 images are unreadable, more than data.max_bad_fraction = 0.05" in told and "Traceback" not in told


def test_a_validation_set_of_which_nothing_can_be_read_is_one_line(tmp_path, quick_runs):
    trainer = Trainer(config(tmp_path, "--data.max-bad-fraction", "1"))
    data = memory(4)
    data.bad = dict.fromkeys(range(4), "broken")  # known since they were prepared
    with pytest.raises(ValueError, match="^none of the 4 validation images can be read, such as 0.png: broken"):
        validate(trainer.weights, trainer.config, data, trainer.tokenizer, trainer.accelerator)


def test_the_facts_count_the_images_that_were_found_to_be_unreadable(tmp_path, unvalidated, monkeypatch):
    data = memory(60, bad={7}, captions=2, max_bad_fraction=0.05)
    monkeypatch.setattr("bitgen.trainer.open_data", lambda *_: data)
    changes = ["--data.max-bad-fraction", "0.05", "--optim.batch-size", "20", "--optim.max-steps", "3"]
    Trainer(config(tmp_path, *changes)).fit()
    assert json.loads((tmp_path / "run_facts.json").read_text())["data"]["train"]["unreadable"] == 1


def test_validation_repeats_and_leaves_the_random_state_as_it_was(tmp_path):
    trainer, data, found = Trainer(config(tmp_path)), memory(12), []
    for _ in range(2):
        torch.rand(1)                                                               # as if there had been training
        before = random_state()
        found.append(validate(trainer.weights, trainer.config, data, trainer.tokenizer, trainer.accelerator)[0])
        assert differences(before, random_state()) == []
    assert found[0] == found[1]


def test_the_first_checkpoint_too_asks_for_the_space_that_it_takes(tmp_path, unvalidated, monkeypatch):
    asked, save = [], checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *given, estimate, **more: asked.append(estimate) or save(
        *given, estimate=estimate, **more))
    Trainer(config(tmp_path, "--optim.max-steps", "1")).fit()
    files = sum(path.stat().st_size for path in (tmp_path / "checkpoint-1").iterdir())
    assert asked == [pytest.approx(files, rel=0.1)]


def spoiled(batch):
    batch.pixel_values[0] = float("nan")
    return batch


def test_a_full_disk_costs_a_warning_and_three_in_a_row_the_run(tmp_path, unvalidated, monkeypatch, capsys):
    def full(folder, *_, **__):
        raise checkpoint.CheckpointError(folder, "no space left", needed=10, free=1)

    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda folder, step, *a, **k: (full if step == 3 else save)(
        folder, step, *a, **k))
    Trainer(config(tmp_path / "one", *SILENT)).fit()
    assert "training goes on" in capsys.readouterr().err and (tmp_path / "one" / "checkpoint-6").is_dir()
    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(Stop, match="the last of step 1") as stop:  # what was trained since the one before is lost
        Trainer(config(tmp_path / "last", "--optim.max-steps", "1")).fit()
    assert stop.value.code == 74
    with pytest.raises(Stop, match="3 checkpoints in a row") as stop:
        Trainer(config(tmp_path / "three", "--save-every", "1", *SILENT)).fit()
    assert stop.value.code == 74


def test_early_stopping_waits_as_long_as_it_was_told(tmp_path, find):
    changes = ["--optim.patience", "2", "--validate-every", "1", *SILENT]
    trainer = Trainer(config(tmp_path, *changes))
    find(3.0, 2.9995, 2.9995)                                                       # no better than by min_delta
    trainer.fit()
    assert trainer.step == 3 and trainer.best["step"] == 1   # the first is the best; two more bring nothing
    assert (tmp_path / "checkpoint-3").is_dir() and (tmp_path / "checkpoint-1").is_dir(), "the last and the best"
    assert json.loads((tmp_path / "checkpoint-1" / "metrics.json").read_text())["validated_at"] == 1
    again = Trainer(config(tmp_path, *changes, "--resume", "auto"))
    again.fit()
    assert again.step == 3, "it has ended"
    longer = Trainer(config(tmp_path, *changes, "--resume", "auto", "--optim.patience", "3"))
    find(3.0)
    longer.fit()
    assert longer.step == 4


def test_early_stopping_counts_validations_in_a_row_of_the_averaged_weights(tmp_path, monkeypatch):
    trainer, asked = mute(Trainer(config(tmp_path, "--optim.patience", "2"))), []
    found = iter([({"total": loss}, None) for loss in (3.0, 4.0, 2.0, 4.0, 1.0, 1.0, 1.5)])
    monkeypatch.setattr("bitgen.trainer.validate", lambda model, *_: asked.append(model) or next(found))
    assert [trainer._validated() for _ in range(7)] == [False] * 6 + [True]
    assert set(asked) == {trainer.objective.momentum.model}


def test_the_best_checkpoint_stands_also_where_none_was_due(tmp_path, find):
    trainer = Trainer(config(tmp_path, "--validate-every", "2", "--save-every", "100", "--keep", "1", *SILENT))
    find(3.0, 1.0, 2.0)
    trainer.fit()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    assert [path.name for path in checkpoint.course(tmp_path)] == ["checkpoint-4", "checkpoint-6"]


def test_the_epoch_in_a_checkpoint_is_that_of_the_images_seen(run):
    assert json.loads((run / "checkpoint-6" / "metrics.json").read_text())["epoch"] == 6 * 16 / 128


def test_scaled_gradients_are_those_that_were_not_scaled_and_overflow_lowers_the_scale(tmp_path, unvalidated):
    """As with fp16, which no CPU trains in."""
    ended = []
    for name, scale in (("plain", None), ("scaled", 2.0**10), ("overflowing", 2.0**127)):
        trainer = Trainer(config(tmp_path / name, "--precision", "float32", "--optim.max-steps", "3"))
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale else None
        trainer.fit()
        ended.append(trainer)
    plain, scaled, overflowing = ended
    assert differences(plain.model.state_dict(), scaled.model.state_dict()) == []
    norms = [read_metrics(tmp_path / name)[0]["grad_norm"] for name in ("plain", "scaled")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert overflowing.skipped_in_all > 0 and overflowing.accelerator.scaler.get_scale() < 2.0**127
    saved = state_of(tmp_path / "overflowing", 3)["scaler"]
    assert saved["scale"] == overflowing.accelerator.scaler.get_scale()


def test_a_batch_of_one_image_is_refused_where_there_is_a_contrast(tmp_path):
    with pytest.raises(ValueError, match="optim.batch_size 1: the contrast needs"):
        Trainer(config(tmp_path, "--optim.batch-size", "1"))


@pytest.mark.parametrize("bad", [{3, 7}, {10, 11}])  # the latter are a batch of their own, the last one
def test_validation_leaves_out_what_cannot_be_read(tmp_path, caplog, bad):
    """Also where that is not known before, as of images that are not prepared."""
    trainer = Trainer(config(tmp_path, "--data.max-bad-fraction", "0.5"))
    whole, broken = memory(count=12), memory(count=12, bad=bad)
    ask = lambda data: validate(trainer.model, trainer.config, data, trainer.tokenizer, trainer.accelerator,  # noqa: E731
                                batch_size=5)
    numbers, gallery = ask(broken)
    assert gallery.indices == [i for i in range(12) if i not in bad] and numbers["images"] == 10
    kept = torch.isin(ask(whole)[1].owner, torch.tensor(sorted(bad))).logical_not()
    torch.testing.assert_close(gallery.text_features, ask(whole)[1].text_features[kept])
    assert "skipped" in caplog.text and math.isfinite(numbers["text_dealt"])
    trainer.config.data.max_bad_fraction = 0.1
    with pytest.raises(ValueError, match="2 of 12"):
        ask(broken)


def test_accumulated_batches_make_one_step(tmp_path, unvalidated):
    trainer = Trainer(config(tmp_path, "--optim.accumulation", "2", "--optim.max-steps", "2", "--log-every", "1"))
    trainer.fit()
    assert trainer.step == 2 and int(trainer.objective.queue.size) == 32   # queue_start counts batches
    assert int(trainer.objective.momentum.updates) == 2, "one for each step, not for each batch"
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_accumulated_batches_move_weights_by_their_mean(tmp_path):
    """The gradient of a batch and once more the same is that of the batch, where nothing is drawn by chance."""
    settled = ["--loss.itm", "0", "--loss.text", "0", "--model.memory-slots", "0"]
    once, twice = (Trainer(config(tmp_path, *settled, "--optim.accumulation", count)) for count in "12")
    [batch] = once.feed.batches(0, 1)
    norms = [float(one_step(*given)["grad_norm"]) for given in ((once, batch), (twice, batch, batch))]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_too_few_images_for_a_batch_is_an_error_that_names_the_setting(tmp_path, capsys):
    assert main(["train", *TINY, "--output-dir", str(tmp_path), "--data.scenes-train", "8"]) == 65
    assert "batch_size" in capsys.readouterr().err


def test_evaluation_of_a_run_writes_flat_numbers_and_a_picture(run, tmp_path, capsys):
    result, drawn = tmp_path / "out" / "test.json", tmp_path / "new" / "picture.png"
    assert main(["evaluate", str(run), "--data", "scenes", "--split", "val", "--rerank", "4", "--json", str(result),
                 "--picture", str(drawn)]) == 0
    report = json.loads(result.read_text())
    assert report["images"] == 40 and report["captions"] == 200
    assert report["t2i_r1"] < 0.2 and report["chance_t2i_r1"] == pytest.approx(1 / 40)
    assert {"i2t_median_rank", "rerank_t2i_r10", "chance_i2t_r5", "caption_attributes"} <= report.keys()
    assert drawn.stat().st_size > 10_000
    assert "chance" in capsys.readouterr().out


def test_runs_of_two_precisions_follow_one_another_in_one_process(tmp_path):
    for precision in ("float32", "bf16", "float32"):
        trainer = Trainer(config(tmp_path / precision, "--precision", precision))
        assert trainer.accelerator.mixed_precision == {"float32": "no"}.get(precision, precision)


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_a_launcher_that_would_split_the_model_is_refused(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.Accelerator.distributed_type", DistributedType[kind])
    with pytest.raises(ValueError, match=f"{kind}: every process holds the whole model"):
        Trainer(config(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_folder_is_one_process_s_and_what_it_held_is_named(run, tmp_path, capsys, quick_runs):
    folder = shutil.copytree(run, tmp_path / "run")
    code = f"""
from pathlib import Path
from bitgen.lock import locked
file = locked(Path({str(folder)!r}, ".lock"), "")
print(1, flush=True)
input()"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "1\n"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ValueError, match="another process trains into it; take another output_dir"):
        Trainer(config(folder, "--optim.max-steps", "2")).fit()
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    other.communicate("\n")
    capsys.readouterr()
    Trainer(config(folder, "--optim.max-steps", "2")).fit()
    said = capsys.readouterr().err
    assert "checkpoint-6 and what else an earlier run left there is replaced" in said and "--resume auto" in said
