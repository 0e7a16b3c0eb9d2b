"""Settings on the command line and in files: as people write them; what is wrong is named with what is right."""

import pytest

from bitgen.cli import main, parse_config
from bitgen.config import load_preset, located, portable


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
