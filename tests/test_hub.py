"""Loading and pulling from the Hub: by exact commit, within bounds, verified before anything is parsed."""

import json
import shutil
from pathlib import Path

import pytest
import strangers
import torch

from bitgen import wire
from bitgen.admission import BYTES
from bitgen.checkpoint import verify
from bitgen.cli import main, parse_config
from bitgen.download import Commit
from bitgen.hub import load, pull, resolve_resume
from bitgen.push import push_run
from bitgen.trainer import Trainer
from bitgen.wire import HubError

REPO = "org/name"
NAMES = ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json")


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    return strangers.write(tmp_path_factory.mktemp("valid"))


@pytest.fixture
def files(valid):
    return {name: (valid / name).read_bytes() for name in NAMES}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(wire, "PAUSE", 0.01)


def asked(hub, *endpoints):
    """Paths that these endpoints were asked for."""
    return [path for name, _, path, _ in hub.requests if name in endpoints]


def same(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


# Loading --------------------------------------------------------------------------------------------------------


def test_a_model_on_the_hub_is_the_one_that_was_pushed(hub, files, valid):
    sha = hub.seed(REPO, files | {"README.md": b"# hi", "run.py": b"import os", "optimizer.pt": b"\x80"})
    model, processor = load(REPO)
    local, _ = load(valid)
    assert same(model, local) and processor.vision.image_size == 32 and model.tokenizer is processor.tokenizer
    fetched = asked(hub, "resolve")
    assert {path.rpartition("/")[2] for path in fetched} == set(NAMES)
    assert all(f"/resolve/{sha}/" in path for path in fetched)


def test_the_token_goes_to_the_hub_alone(hub, files):
    hub.seed(REPO, files)
    load(REPO)
    tokens = {name: token for name, _, _, token in hub.requests}
    assert tokens["get"] is None and tokens["info"] == tokens["resolve"] == tokens["tree"] == hub.token


def test_a_checkpoint_and_a_revision_are_what_is_loaded(hub, files, valid):
    first = hub.seed(REPO, {f"checkpoint-5/{name}": data for name, data in files.items()})
    other = dict(files)
    other["model.safetensors"] = other["model.safetensors"][:-4] + b"\0\0\0@"  # 2.0
    hub.seed(REPO, {f"checkpoint-5/{name}": data for name, data in other.items()})
    old, _ = load(REPO, checkpoint="checkpoint-5", revision=first)
    new, _ = load(REPO, checkpoint="checkpoint-5")
    assert same(old, load(valid)[0]) and not same(new, old)


def test_a_commit_that_is_cached_is_loaded_without_a_request(hub, files):
    sha = hub.seed(REPO, files)
    first, _ = load(REPO, revision=sha)
    before = len(hub.requests)
    again, _ = load(REPO, revision=sha)
    assert same(first, again) and len(hub.requests) == before
    load(REPO)
    assert asked(hub, "info", "tree", "resolve", "get")[before:] == asked(hub, "info")  # only: what is main now?


@pytest.mark.parametrize("cause", ["offline", "refused", 503, 429, "silent", "reset", "html"])
def test_without_the_hub_the_cache_is_used_and_the_commit_named(hub, files, cause, capsys, monkeypatch):
    sha = hub.seed(REPO, files)
    first, _ = load(REPO)
    if cause == "offline":
        from huggingface_hub import constants
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif cause == "refused":
        from huggingface_hub import constants
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    else:
        monkeypatch.setattr(wire, "SILENCE", 0.5)
        hub.fault("*", cause)
    again, _ = load(REPO)
    assert same(first, again) and f"taking commit {sha} from the cache" in capsys.readouterr().err


def test_offline_what_is_not_cached_is_named(hub, files, monkeypatch):
    from huggingface_hub import constants

    sha = hub.seed(REPO, files)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for revision in (None, sha):
        with pytest.raises(HubError, match=f"{REPO}@.*HF_HUB_OFFLINE"):
            load(REPO, revision=revision)
    assert not hub.requests


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_in_the_cache_is_fetched_again(hub, files, name, capsys):
    hub.seed(REPO, files)
    first, _ = load(REPO)
    cached = Commit.at(REPO).cached({}, 0) / name
    data = bytearray(cached.read_bytes())
    data[len(data) // 2] ^= 1
    cached.resolve().write_bytes(data)
    before = len(asked(hub, "resolve"))
    again, _ = load(REPO)
    assert same(first, again) and len(asked(hub, "resolve")) == before + 1
    assert f"{name}: damaged in the cache" in capsys.readouterr().err


FAULTS = [(endpoint, kind) for endpoint in ("info", "tree", "resolve", "get")
          for kind in ("cut", "lost", "html", "reset", "silent", 500, 503, 429) if endpoint != "resolve" or kind not in
          ("cut", "lost", "html")] + [("resolve", "flip"), ("get", "flip"), ("get", "mute")]


@pytest.mark.parametrize("endpoint, kind", FAULTS)
def test_a_fault_that_passes_is_passed_over(hub, files, endpoint, kind, monkeypatch):
    hub.seed(REPO, files)
    monkeypatch.setattr(wire, "SILENCE", 1.0 if kind in ("silent", "mute") else 10.0)
    hub.fault(endpoint, kind, times=1)
    assert load(REPO)[1].vision.image_size == 32


@pytest.mark.parametrize("endpoint, kind", FAULTS)
def test_a_fault_that_stays_is_an_error_that_names_what_was_asked(hub, files, endpoint, kind, monkeypatch):
    hub.seed(REPO, files)
    monkeypatch.setattr(wire, "SILENCE", 0.5 if kind in ("silent", "mute") else 10.0)
    hub.fault(endpoint, kind)
    with pytest.raises(HubError, match=rf"'{REPO}' is no folder here; on the Hub: {REPO}@") as error:
        load(REPO)
    assert error.value.passing and len(asked(hub, endpoint)) <= 2


@pytest.mark.parametrize("status, code, reason", [
    (403, "GatedRepo", "gated"), (404, "RepoNotFound", "no such repository"), (401, None, "answers 401"),
    (404, "RevisionNotFound", "no such revision"), (403, None, "answers 403"), (404, "EntryNotFound", "no such file")])
@pytest.mark.parametrize("endpoint", ["info", "tree", "resolve"])
def test_a_refusal_is_told_and_not_repeated(hub, files, endpoint, status, code, reason):
    hub.seed(REPO, files)
    load(REPO)
    shutil.rmtree(Commit.at(REPO).cached({}, 0).parents[1])
    hub.requests.clear()
    hub.fault(endpoint, status, headers={"X-Error-Code": code} if code else {})
    with pytest.raises(HubError, match=f"{REPO}@.*{reason}") as error:
        load(REPO)
    assert not error.value.passing and len(asked(hub, endpoint)) == 1


def test_a_private_repository_needs_the_token(hub, files, monkeypatch):
    hub.seed(REPO, files)
    hub.repos[REPO].private = True
    load(REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(HubError, match="private one that your token does not open"):
        load(REPO)


def test_redirects_that_never_end_do(hub, files):
    hub.seed(REPO, files)
    hub.fault("resolve", 302, headers={"Location": f"{hub.url}/{REPO}/resolve/main/config.json"})
    with pytest.raises(HubError, match="TooManyRedirects"):
        load(REPO)


def test_bytes_that_are_right_need_no_header(hub, files, monkeypatch):
    hub.seed(REPO, files)
    answer = hub.resolve

    def bare(*request):
        made = answer(*request)
        made.headers = {name: value for name, value in made.headers.items() if name == "Location"}
        return made
    monkeypatch.setattr(hub, "resolve", bare)
    assert load(REPO)[1].max_tokens == 16


@pytest.mark.parametrize("name, size, reason", [
    ("config.json", 50_000_000, "50,000,000 bytes; at most 64,000"),
    ("tokenizer.json", 100_000_000, "at most 12,000,000"),
    ("model.safetensors", 1_900_000_000, "at most"), ("config.json", 7, "longer than 7"),
    ("config.json", 7000, "instead of 7,000"), ("config.json", -1, "not a listing"),
    ("config.json", "7", "not a listing"), ("config.json", None, "not a listing")])
def test_a_size_in_the_listing_counts_before_a_byte_is_fetched(hub, files, monkeypatch, name, size, reason):
    hub.seed(REPO, files)
    relist(hub, monkeypatch, lambda entry: entry | {"size": size, **({"lfs": entry["lfs"] | {"size": size}}
                                                    if "lfs" in entry else {})} if entry["path"] == name else entry)
    with pytest.raises(HubError, match=reason):
        load(REPO)
    assert size in (7, 7000) or not asked(hub, "resolve", "get")


def test_all_files_together_have_a_limit(hub, files, monkeypatch):
    from bitgen import hub as module

    hub.seed(REPO, files)
    monkeypatch.setattr(module, "MODEL_BYTES", 1000)
    with pytest.raises(HubError, match="bytes in all; at most 1,000"):
        load(REPO)
    assert not asked(hub, "resolve", "get")


def relist(hub, monkeypatch, change):
    """Lists files otherwise: `change(entry)` -> entry."""
    answer = hub.tree

    def otherwise(*request):
        made = answer(*request)
        made.body = json.dumps([change(entry) for entry in json.loads(made.body)]).encode()
        return made
    monkeypatch.setattr(hub, "tree", otherwise)


@pytest.mark.parametrize("path", ["../config.json", "..", "/etc/passwd", "a/../../b", "a\\b", "a\0b", "", 7, None])
def test_a_path_that_leads_elsewhere_is_refused(hub, files, monkeypatch, path):
    hub.seed(REPO, files)
    relist(hub, monkeypatch, lambda entry: entry | {"path": path} if entry["path"] == "config.json" else entry)
    with pytest.raises(HubError, match="not a listing"):
        load(REPO)
    assert not asked(hub, "resolve", "get")


@pytest.mark.parametrize("change", [{"oid": "../../x"}, {"oid": None}, {"type": None}, {"lfs": {"oid": "a" * 64}},
                                    {"lfs": {"oid": "../" * 20 + "abcd", "size": 3}}])
def test_a_listing_with_an_odd_hash_is_refused(hub, files, monkeypatch, change):
    hub.seed(REPO, files)
    relist(hub, monkeypatch, lambda entry: entry | change)
    with pytest.raises(HubError, match="not a listing"):
        load(REPO)


@pytest.mark.parametrize("sha", ["main", "../../../tmp/x", "", None, 7])
def test_a_commit_that_is_no_commit_is_refused(hub, files, monkeypatch, sha):
    hub.seed(REPO, files)
    monkeypatch.setattr(hub, "info", lambda *request: strangers_answer({"id": REPO, "sha": sha}))
    with pytest.raises(HubError, match="names no commit"):
        load(REPO)


def strangers_answer(body):
    from hub_store import Answer
    return Answer(body)


def test_a_listing_of_several_pages_is_read_and_one_of_10_000_files_refused(hub, files):
    hub.page = 1
    hub.seed(REPO, files)
    load(REPO)
    assert len(asked(hub, "tree")) == len(files)
    hub.page = 1000
    hub.seed(REPO, {f"{i}.txt": b"" for i in range(10_000)})
    with pytest.raises(HubError, match="more than 5,000 files"):
        load(REPO)


def test_a_listing_that_goes_on_elsewhere_is_not_followed(hub, files, monkeypatch):
    hub.seed(REPO, files)
    answer = hub.tree

    def elsewhere(*request):
        made = answer(*request)
        made.headers["Link"] = f'<{hub.storage}/more>; rel="next"'
        return made
    monkeypatch.setattr(hub, "tree", elsewhere)
    with pytest.raises(HubError, match="elsewhere"):
        load(REPO)


def test_what_is_missing_is_named_with_the_checkpoints_that_are_there(hub, files):
    hub.seed(REPO, {"checkpoint-5/config.json": b"{}", "checkpoint-20/config.json": b"{}", "pytorch_model.bin": b"x"})
    with pytest.raises(HubError, match="lacks config.json, .*; its checkpoints: checkpoint-20, checkpoint-5"):
        load(REPO)
    with pytest.raises(HubError, match="no checkpoint-7 here; its checkpoints: checkpoint-20, checkpoint-5"):
        load(REPO, checkpoint="checkpoint-7")
    with pytest.raises(HubError, match="checkpoint-5: lacks model.safetensors"):
        load(REPO, checkpoint="checkpoint-5")
    with pytest.raises(HubError, match="no such revision"):
        load(REPO, revision="gone")


@pytest.mark.parametrize("source, more", [
    ("org/name", {"checkpoint": "../../x"}), ("org/name", {"checkpoint": "checkpoint-1/.."}), ("no", {}),
    ("org/name", {"revision": "../../x"}), ("org/name", {"revision": "a b"}), ("../name", {}), ("org/..", {}),
    ("org/name/more", {})])
def test_odd_names_are_refused_before_the_hub_is_asked(hub, source, more):
    with pytest.raises(ValueError, match="expected a name|no Hub id"):
        load(source, **more)
    assert not hub.requests


def test_a_hostile_checkpoint_is_refused_from_the_hub_as_from_a_folder(hub, valid, tmp_path):
    folder = Path(shutil.copytree(valid, tmp_path / "hostile"))
    strangers.instead("model.safetensors", strangers.pickled)(folder)
    hub.seed(REPO, {path.name: path.read_bytes() for path in folder.iterdir()})
    with pytest.raises(ValueError, match="model.safetensors.*Not a safetensors file"):
        load(REPO)
    assert not (folder / strangers.CANARY).exists()


# Taking a run over ----------------------------------------------------------------------------------------------

TINY = ["--config", "scenes", "--config", "nano", "--data.scenes-train", "128", "--vision.image-size", "32",
        "--optim.batch-size", "16", "--optim.max-steps", "6", "--optim.epochs", "4", "--log-every", "1",
        "--save-every", "3", "--validate-every", "6", "--loss.queue", "64", "--loss.queue-start", "2",
        "--loss.episode", "8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of six steps with two checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    train("--output-dir", str(folder))
    return folder


def train(*settings):
    """A run that draws nothing: it would take longer than its training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bitgen.boards.validated", lambda *_: None)
        patch.setattr("bitgen.card._draw", lambda *_: False)
        Trainer(parse_config([*TINY, *settings])).fit()


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
    train("--output-dir", str(elsewhere), "--resume", str(source))
    assert (elsewhere / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    ended, resumed = (torch.load(folder / "checkpoint-6/checkpoint-6.pt", weights_only=True) for folder in
                      (run, elsewhere))
    for part in ("objective", "optimizer", "random"):
        assert differences(ended[part], resumed[part]) == []


def differences(a, b, path=""):
    """Places where two nested states differ in a single bit."""
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [path]
    if isinstance(a, dict):
        a, b = list(a.items()), list(b.items())
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        return [found for i, (x, y) in enumerate(zip(a, b)) for found in differences(x, y, f"{path}/{i}")]
    return [] if a == b else [path]


def test_pulling_leaves_a_run_folder_that_verifies_and_loads(hub, run, pushed, tmp_path, capsys):
    folder = tmp_path / "pulled"
    assert main(["pull", REPO, "--checkpoint", "3", "--output-dir", str(folder)]) == 0
    assert f"pulled: {folder}/checkpoint-3" in capsys.readouterr().out
    verify(folder / "checkpoint-3")
    for path in (run / "checkpoint-3").iterdir():
        assert path.read_bytes() == (folder / "checkpoint-3" / path.name).read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == sorted(["checkpoint-3", *NAMES])
    assert same(load(folder)[0], load(run / "checkpoint-3")[0])


def test_the_newest_is_pulled_by_number(hub, run, pushed, tmp_path):
    hub.seed(REPO, {name.replace("checkpoint-3", f"checkpoint-{step}"): data for name, data in pushed.items()
                    for step in (20, 100)})
    with pytest.raises(ValueError, match="checkpoint-100: MANIFEST.json does not list"):
        pull(REPO, tmp_path / "pulled")


def test_what_is_there_already_is_not_fetched_again(hub, run, pushed, tmp_path):
    path = pull(REPO, tmp_path)
    hub.requests.clear()
    assert pull(REPO, tmp_path) == path
    assert len(asked(hub, "resolve")) == 1                                                       # the manifest


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


def test_a_repository_without_checkpoints_says_so(hub, files, tmp_path, capsys):
    hub.seed(REPO, files)
    assert main(["pull", f"{REPO}@main", "--output-dir", str(tmp_path)]) == 65
    assert "no checkpoint-N to go on from" in capsys.readouterr().err
    assert not list(tmp_path.glob("checkpoint-*"))


def test_resuming_from_a_folder_asks_nobody(hub, run):
    assert resolve_resume(str(run / "checkpoint-3"), run) == run / "checkpoint-3"
    assert not hub.requests


def test_every_file_that_is_fetched_has_a_limit():
    assert set(NAMES) <= BYTES.keys() and all(limit <= 1e9 for limit in BYTES.values())
