"""Taking a run over from the Hub: what is pulled verifies, and goes on to the same bits."""

import json
import shutil

import pytest
import strangers
import torch
from conftest import same_weights
from small_runs import config, differences, state_of

from bitgen import checkpoint, wire
from bitgen.checkpoint import verify
from bitgen.cli import main
from bitgen.hub import load, pull, resolve_resume
from bitgen.push import push_run
from bitgen.trainer import Trainer

REPO = "org/name"
pytestmark = pytest.mark.usefixtures("quick_runs")
NAMES = ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(wire, "PAUSE", 0.01)


@pytest.fixture
def pushed(hub, run):
    """The files of its first checkpoint, as they stand on the Hub."""
    files = {f"checkpoint-3/{path.name}": path.read_bytes() for path in (run / "checkpoint-3").iterdir()}
    hub.seed(REPO, files)
    return files


def test_a_run_that_is_pushed_and_taken_over_elsewhere_ends_in_the_same_bits(hub, run, tmp_path):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    shutil.copytree(run / "checkpoint-3", here / "checkpoint-3")
    assert push_run(here, REPO).complete
    shutil.rmtree(here)
    source = resolve_resume(f"hub://{REPO}@main", elsewhere)
    assert source == elsewhere / "checkpoint-3"
    Trainer(config(elsewhere, "--resume", str(source))).fit()
    assert (elsewhere / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    ended, resumed = state_of(run, 6), state_of(elsewhere, 6)
    for part in ("objective", "optimizer", "random"):
        assert differences(ended[part], resumed[part]) == []


def test_pulling_leaves_a_run_folder_that_verifies_and_loads(hub, run, pushed, tmp_path, capsys):
    folder = tmp_path / "pulled"
    assert main(["pull", REPO, "--checkpoint", "3", "--output-dir", str(folder)]) == 0
    assert f"pulled: {folder}/checkpoint-3" in capsys.readouterr().out
    verify(folder / "checkpoint-3")
    for path in (run / "checkpoint-3").iterdir():
        assert path.read_bytes() == (folder / "checkpoint-3" / path.name).read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == sorted(["checkpoint-3", *NAMES])
    assert same_weights(load(folder)[0], load(run / "checkpoint-3")[0])


@pytest.mark.parametrize("lost", NAMES)
def test_a_root_that_a_kill_left_incomplete_is_completed_by_the_next_pull(hub, run, pushed, tmp_path, lost):
    folder = tmp_path / "pulled"
    pull(REPO, folder)
    (folder / lost).unlink()
    pull(REPO, folder)
    for name in NAMES:
        assert (folder / name).read_bytes() == pushed[f"checkpoint-3/{name}"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(["checkpoint-3", *NAMES])
    (folder / "config.json").write_text("another's")
    pull(REPO, folder)
    assert (folder / "config.json").read_text() == "another's"


def test_what_is_pushed_by_hand_is_at_the_root_here_too(hub, run, tmp_path):
    """A kill may have come between the last save and its publication; the card tells of the weights at the root."""
    here = tmp_path / "here"
    shutil.copytree(run, here)
    for name in NAMES:
        shutil.copyfile(here / "checkpoint-3" / name, here / name)
    assert push_run(here, REPO).landed == 6
    assert (here / "model.safetensors").read_bytes() == hub.files(REPO)["model.safetensors"]
    assert "6 of 6" in hub.files(REPO)["README.md"].decode()


def test_the_newest_is_pulled_by_number(hub, run, pushed, tmp_path):
    hub.seed(REPO, {name.replace("checkpoint-3", f"checkpoint-{step}"): data for name, data in pushed.items()
                    for step in (20, 100)})
    with pytest.raises(ValueError, match="checkpoint-100: MANIFEST.json does not list"):
        pull(REPO, tmp_path / "pulled")


def test_what_is_there_already_is_not_fetched_again(hub, run, pushed, tmp_path):
    path = pull(REPO, tmp_path)
    hub.requests.clear()
    assert pull(REPO, tmp_path) == path
    assert len(hub.asked("resolve")) == 1                                                       # the manifest


def test_a_damaged_checkpoint_is_replaced_and_another_runs_is_not(hub, run, pushed, tmp_path):
    path = pull(REPO, tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    verify(pull(REPO, tmp_path))
    hub.seed(REPO, {"checkpoint-3/MANIFEST.json": b"{}"})
    with pytest.raises(ValueError, match="another run's checkpoint"):
        pull(REPO, tmp_path)
    verify(tmp_path / "checkpoint-3")


def test_processes_that_pull_at_once_leave_one_whole_checkpoint(hub, run, pushed, tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor
    from itertools import count

    numbers = count()
    monkeypatch.setattr("bitgen.hub.os.getpid", lambda: next(numbers))
    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(lambda _: pull(REPO, tmp_path), range(3))) == {tmp_path / "checkpoint-3"}
    verify(tmp_path / "checkpoint-3")
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-3"}


@pytest.mark.parametrize("change, reason", [
    ({"MANIFEST.json": b"{}"}, "does not list"), ({"MANIFEST.json": b"[" * 50_000}, "deep"),
    ({"MANIFEST.json": b'{"files": {"../../x": [1, "a"]}}'}, "does not list"),
    ({"metrics.json": b"{}"}, "metrics.json has 2 bytes"), ({"checkpoint-3.pt": b"x"}, "checkpoint-3.pt has 1 bytes"),
    ({"run.json": b" " * 70_000}, "at most 64,000")])
def test_a_checkpoint_that_is_not_whole_is_not_pulled(hub, pushed, tmp_path, change, reason):
    hub.seed(REPO, {f"checkpoint-3/{name}": data for name, data in change.items()})
    with pytest.raises(ValueError, match=reason):
        pull(REPO, tmp_path / "pulled")
    assert not list(tmp_path.glob("pulled/*"))


def test_a_checkpoint_after_which_no_other_could_be_saved_is_not_pulled(hub, pushed, tmp_path):
    body = json.loads(pushed["checkpoint-3/MANIFEST.json"])
    hub.seed(REPO, {"checkpoint-3/MANIFEST.json": checkpoint._sealed(body | {"sequence": 2**53}).encode()})
    with pytest.raises(ValueError, match="9,007,199,254,740,992 checkpoints before"):
        pull(REPO, tmp_path / "pulled")
    assert not list(tmp_path.glob("pulled/*"))


def test_a_training_state_that_would_run_code_is_not_pulled(hub, run, tmp_path):
    from bitgen.checkpoint import save

    made = save(tmp_path / "made", 3, {path.name: (lambda to, path=path: shutil.copy(path, to)) for path in
                                       (run / "checkpoint-3").iterdir() if path.suffix in (".json", ".safetensors")
                                       and path.name != "MANIFEST.json"}
                | {"checkpoint-3.pt": lambda to: torch.save(strangers.Payload(tmp_path), to)})
    hub.seed(REPO, {f"checkpoint-3/{path.name}": path.read_bytes() for path in made.iterdir()})
    with pytest.raises(ValueError, match="checkpoint-3.pt: not a training state"):
        pull(REPO, tmp_path / "pulled")
    assert not list(tmp_path.glob("pulled/*")) and not (tmp_path / strangers.CANARY).exists()


def test_resuming_from_a_folder_asks_nobody(hub, run):
    assert resolve_resume(str(run / "checkpoint-3"), run) == run / "checkpoint-3"
    assert not hub.requests


def test_a_repository_without_checkpoints_says_so(hub, tmp_path, capsys):
    hub.seed(REPO, {"config.json": b"{}"})
    assert main(["pull", f"{REPO}@main", "--output-dir", str(tmp_path)]) == 65
    assert "no checkpoint-N to go on from" in capsys.readouterr().err
    assert not list(tmp_path.glob("checkpoint-*"))
