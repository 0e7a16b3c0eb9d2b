"""Loading from the Hub: by exact commit, within bounds, verified before anything is parsed."""

import json
import shutil
from pathlib import Path

import pytest
import strangers
from conftest import same_weights

from bitgen import wire
from bitgen.admission import BYTES
from bitgen.download import Commit
from bitgen.hub import load
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


def test_a_model_on_the_hub_is_the_one_that_was_pushed(hub, files, valid):
    sha = hub.seed(REPO, files | {"README.md": b"# hi", "run.py": b"import os", "optimizer.pt": b"\x80"})
    model, processor = load(REPO)
    local, _ = load(valid)
    assert same_weights(model, local) and processor.vision.image_size == 32 and model.tokenizer is processor.tokenizer
    fetched = hub.asked("resolve")
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
    assert same_weights(old, load(valid)[0]) and not same_weights(new, old)


def test_a_commit_that_is_cached_is_loaded_without_a_request(hub, files):
    sha = hub.seed(REPO, files)
    first, _ = load(REPO, revision=sha)
    before = len(hub.requests)
    again, _ = load(REPO, revision=sha)
    assert same_weights(first, again) and len(hub.requests) == before
    load(REPO)
    assert hub.asked("info", "tree", "resolve", "get")[before:] == hub.asked("info")  # only: what is main now?


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
    assert same_weights(first, again) and f"taking commit {sha} from the cache" in capsys.readouterr().err


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
    before = len(hub.asked("resolve"))
    again, _ = load(REPO)
    assert same_weights(first, again) and len(hub.asked("resolve")) == before + 1
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
    assert error.value.passing and len(hub.asked(endpoint)) <= 2


@pytest.mark.parametrize("status, code, reason", [
    (403, "GatedRepo", "gated"), (404, "RepoNotFound", "no such repository"),
    (401, None, "answers 401: not logged in, or the token is no longer valid: `hf auth login`"),
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
    assert not error.value.passing and len(hub.asked(endpoint)) == 1


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
    assert size in (7, 7000) or not hub.asked("resolve", "get")


def test_all_files_together_have_a_limit(hub, files, monkeypatch):
    from bitgen import hub as module

    hub.seed(REPO, files)
    monkeypatch.setattr(module, "MODEL_BYTES", 1000)
    with pytest.raises(HubError, match="bytes in all; at most 1,000"):
        load(REPO)
    assert not hub.asked("resolve", "get")


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
    assert not hub.asked("resolve", "get")


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
    assert len(hub.asked("tree")) == len(files)
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


def test_every_file_that_is_fetched_has_a_limit():
    assert set(NAMES) <= BYTES.keys() and all(limit <= 1e9 for limit in BYTES.values())


def test_what_is_not_in_a_folder_is_named_with_what_is(valid, tmp_path):
    shutil.copytree(valid, tmp_path / "checkpoint-5")
    for checkpoint in ("checkpoint-9", None):
        with pytest.raises(ValueError, match="its checkpoints: checkpoint-5"):
            load(tmp_path, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="checkpoint 5: expected a name such as"):
        load(tmp_path, checkpoint=5)
    with pytest.raises(ValueError, match="device 'cuda:7' cannot be used"):
        load(valid, device="cuda:7")
