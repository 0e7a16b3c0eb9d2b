"""Settings on the command line and in files: as people write them; what is wrong is named with what is right."""

import subprocess
import sys

import pytest

from bitgen.cli import main, parse_config
from bitgen.config import Config, load_preset, located, portable


@pytest.mark.parametrize("given, near", [
    ("--lr", "--optim.lr"), ("--optim.learning-rate=1e-3", "--optim.lr"), ("--data.rot", "--data.root"),
    ("--batch-size", "--optim.batch-size"), ("--model.ternery", "--model.ternary"), ("--dataset", "--data."),
])
def test_the_nearest_setting_is_named_however_far_it_is(given, near, capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", given, "1"])
    err = capsys.readouterr().err
    assert end.value.code == 2 and f"did you mean {near}" in err and given.partition("=")[0] in err


@pytest.mark.parametrize("given", [["--model.ternary"], ["--model.ternary", "true"], ["--model.ternary=true"],
                                   ["--model.ternary", "True"], ["--model.ternary", "--data.flip", "false"]])
def test_yes_or_no_is_said_in_any_of_the_usual_ways(given):
    found = parse_config([*given, "--seed", "3"])
    assert found.model.ternary is True and found.data.flip is False and found.seed == 3


def test_a_file_of_settings_reads_as_people_write(tmp_path):
    (tmp_path / "base.yaml").write_bytes(b"\xef\xbb\xbfextends: nano\noptim: {lr: 1e-3, min_delta: 5E-4}\n")
    (tmp_path / "mine.yaml").write_text("extends: [base.yaml]\nseed: 4\n")        # beside it, wherever one is
    found = load_preset(str(tmp_path / "mine.yaml"))
    assert (found.optim.lr, found.optim.min_delta, found.seed, found.model.hidden_size) == (1e-3, 5e-4, 4, 64)


@pytest.mark.parametrize("text, told", [
    ("data: {augment: off}", "one of 'off', 'light' in quotes"),
    ("lr: 1", "unknown setting 'lr'; did you mean 'optim.lr'"),
    ("optim: {learning_rate: 1}", "unknown setting 'optim.learning_rate'; did you mean 'optim.lr'"),
    ("optimizer: {lr: 1}", "did you mean 'optim'"),
    ("optim: {batch: 1}", "did you mean 'optim.batch_size'"),
    ("optim: {lr: fast}", "setting 'optim.lr': expected float, got 'fast'"),
    ("extends: [mine.yaml]", "extends itself"),
    ("extends: [3]", "extends: expected names of presets, got 3"),
    ("extends: [gone.yaml]", "no such file: .*gone.yaml"),
])
def test_what_is_wrong_in_a_file_of_settings_is_named(tmp_path, text, told):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=told):
        load_preset(str(tmp_path / "mine.yaml"))


def test_settings_that_leave_this_computer_tell_no_path_and_are_found_again_where_it_is_known():
    own = {"data": {"root": "/disk/ann/coco", "cache": "~/cache", "image_root": "photos", "tokenizer": "gpt2"},
           "vision": {"pretrained": "facebook/dinov2-small", "tower": {"path": "/disk/ann/tower/"}, "mean": [0.5]},
           "seed": 3}
    sent = portable(own)
    assert sent == {"data": own["data"] | {"root": ".../coco", "cache": ".../cache"}, "seed": 3,
                    "vision": own["vision"] | {"tower": {"path": ".../tower"}}}
    assert portable(sent) == sent and located(sent, own) == own
    assert located(sent, {"data": {"root": "/disk/ann/flickr"}, "vision": None}) == sent == located(sent, {})


def test_evaluate_refuses_a_number_of_candidates_before_it_loads_anything(tmp_path, capsys):
    assert main(["evaluate", str(tmp_path / "nowhere"), "--rerank", "-1"]) == 65
    assert "rerank must be at least 0, got -1" in capsys.readouterr().err


def test_the_guides_numbers_stand_in_the_coco_preset():
    coco = load_preset("coco")
    optim, loss, model = coco.optim, coco.loss, coco.model
    assert (optim.batch_size, optim.accumulation, optim.lr, optim.weight_decay) == (128, 2, 2e-4, 0.02)
    assert (optim.warmup_steps, optim.epochs, optim.patience, optim.min_delta, optim.clip) == (1000, 50, 5, 0.001, 1.0)
    assert (loss.itc, loss.itm, loss.text, loss.memory_kl, loss.queue) == (1.0, 0.5, 0.5, 0.1, 4096)
    assert (loss.label_smoothing, model.temperature, coco.hub.push_every, coco.keep) == (0.1, 0.07, 1000, 5)
    assert (model.hidden_size, model.text_layers, model.decoder_layers, model.num_heads) == (128, 4, 2, 4)
    assert (model.intermediate_size, model.vocab_size, model.memory_slots, model.max_tokens) == (256, 50257, 32, 256)
    assert coco.data.val_fraction == 0.05


def test_an_unknown_setting_ends_with_status_2_and_the_nearest_one():
    done = subprocess.run([sys.executable, "-m", "bitgen", "train", "--optim.lrr", "1"], capture_output=True, text=True)
    assert done.returncode == 2 and "--optim.lr" in done.stderr + done.stdout


@pytest.mark.parametrize("argv, told", [
    (["train", "--config", "coko"], "did you mean 'coco'"),
    (["train", "--config", "scenes", "--data", "nowhere"], "nowhere"),
    (["evaluate", "nowhere/at all"], "no such folder"),
])
def test_bad_input_is_one_line_and_status_65(argv, told, capsys):
    assert main(argv) == 65
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1


def test_settings_on_the_command_line_win_over_presets_and_presets_over_defaults(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: [nano]\noptim: {lr: 0.5, epochs: 3}\n")
    found = parse_config(["--config", str(mine), "--optim.lr", "0.25", "--data", "photos"])
    assert (found.optim.lr, found.optim.epochs, found.model.hidden_size, found.data.root) == (0.25, 3, 64, "photos")
    assert found.loss == Config().loss
