"""What is written down about a run at its start, and of what an evaluation's numbers are."""

import dataclasses
import hashlib
import json
import subprocess

import pytest
import torch
from conftest import tiny_model

from bitgen import facts
from bitgen.config import Config, DataConfig, portable, to_dict
from bitgen.data import open_data


@pytest.fixture(scope="module")
def data():
    return open_data(DataConfig(scenes_train=12), "train", 32)


def test_the_facts_of_a_run_are_counted(data, tmp_path):
    model = tiny_model()
    model.vision.requires_grad_(False)
    found = facts.gather(Config(precision="float32"), model, data, data, steps=77, processes=3)
    assert found["steps"] == 77 and found["precision"] == "float32" and found["machine"]["processes"] == 3
    assert found["data"]["train"] == {"images": 12, "unreadable": 0, "captions": 60, "different_captions": 60,
                                      "ascii_captions": 60}
    counts, tower = found["parameters"], sum(p.numel() for p in model.vision.parameters())
    assert counts["total"] == sum(p.numel() for p in model.parameters())
    assert counts["total"] - counts["outside_tower"] == counts["by_part"]["vision"] == tower
    assert counts["learning"] == counts["outside_tower"]
    assert found["software"]["torch"] == torch.__version__
    facts.write(tmp_path, found)
    assert json.loads((tmp_path / "run_facts.json").read_text()) == found, "plain values"


def test_captions_are_counted_as_they_are():
    captions = [["a cat", "a cat", "eine Katze über der Straße"], ["猫"]]
    assert facts.counted(Captioned(captions)) == {"images": 2, "unreadable": 1, "captions": 4,
                                                  "different_captions": 3, "ascii_captions": 2}


class Captioned(list):
    """As much of a data set as is counted."""

    def __init__(self, captions):
        super().__init__(captions)
        self.captions, self.bad = captions, {1: "broken"}


def git(folder, *arguments):
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=folder, check=True,
                   capture_output=True)


def test_the_revision_is_that_of_the_repository_that_holds_the_code(tmp_path):
    code = tmp_path / "facts.py"
    code.write_text("1")
    assert facts.revision(code) is None, "no repository"
    git(tmp_path, "init")
    assert facts.revision(code) is None, "somebody else's repository: the code is not tracked in it"
    git(tmp_path, "add", "facts.py")
    git(tmp_path, "commit", "-m", "x")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True).stdout.strip()
    assert facts.revision(code) == {"revision": head, "changed": False}
    code.write_text("2")
    assert facts.revision(code) == {"revision": head, "changed": True}


def test_without_git_the_revision_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert facts.revision() is None


def test_an_evaluation_knows_the_weights_it_is_of(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "model.safetensors").write_bytes(b"weights")
    found = facts.evaluated(str(tmp_path), "checkpoint-5", "scenes", "val")
    assert found == {"data": "scenes", "split": "val", "checkpoint": "checkpoint-5", "level": 0.95,
                     "weights": hashlib.sha256(b"weights").hexdigest()}
    assert facts.evaluated("org/name", None, "scenes", "val")["weights"] is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_run_whose_settings_are_damaged_is_not_taken_for_a_usual_one(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match="run.json"):
        facts.data_settings(str(tmp_path), None, None)


def test_what_is_evaluated_is_opened_as_the_run_opened_it(tmp_path):
    run, photos = tmp_path / "run", tmp_path / "photos"
    photos.mkdir()
    (run / "checkpoint-2").mkdir(parents=True)
    own = DataConfig(root=str(photos), format="csv", image_root="pictures", val_fraction=0.01, cache="/not/here")
    (run / "run.json").write_text(json.dumps(to_dict(Config(data=own))))
    (run / "checkpoint-2" / "run.json").write_text(json.dumps(to_dict(Config(data=own))))
    for checkpoint in (None, "checkpoint-2"):
        same = facts.data_settings(str(run), checkpoint, str(photos) + "/.")
        assert dataclasses.replace(own, root=same.root, cache=None) == same
        assert dataclasses.replace(facts.data_settings(str(run), checkpoint, None), cache=None) == dataclasses.replace(
            own, cache=None), "its own where none is named"
    (run / "checkpoint-2" / "run.json").write_text(json.dumps(portable(to_dict(Config(data=own)))))
    for source, checkpoint in ((run, "checkpoint-2"), (run / "checkpoint-2", None)):
        assert facts.data_settings(str(source), checkpoint, None).root == str(photos), "the run knows where it is"
    other = facts.data_settings(str(run), None, "scenes")
    assert (other.root, other.format, other.val_fraction) == ("scenes", "auto", 0.01)  # never more than was held out
    assert facts.data_settings("org/name", None, "scenes") == DataConfig(root="scenes")
    assert facts.data_settings("org/name", None, None) == DataConfig(root="scenes")
