"""The Hub of the tests answers the real client as the Hub does, and fails as it is told to."""

import os
import subprocess
import sys

import httpx2
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
    set_client_factory,
    snapshot_download,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import _http

REPO = "org/name"


@pytest.fixture
def impatient(hub):
    """A client that waits for a second at most."""
    def factory():
        client = _http.default_client_factory()
        client.timeout = 1.0
        return client

    set_client_factory(factory)
    return HfApi()


def add(path, data):
    return CommitOperationAdd(path, data)


def asked(hub):
    return [endpoint for endpoint, *_ in hub.requests]


def test_a_commit_comes_back_byte_by_byte_and_asks_for_what_the_hub_would(hub, tmp_path):
    api, large = HfApi(), os.urandom(3000)
    assert api.whoami()["name"] == "ann"
    api.create_repo(REPO)
    hub.requests.clear()
    operations = [add("a/model.safetensors", large), add("config.json", b"{}"), add("README.md", b"---\na: 1\n---\n")]
    oid = api.create_commit(REPO, operations, commit_message="first").oid
    assert asked(hub) == ["validate", "preupload", "batch", "put", "verify", "commit"]
    assert [token for endpoint, _, _, token in hub.requests if endpoint == "put"] == [None]
    assert api.repo_info(REPO).sha == oid and hub.commits(REPO) == ["first", "initial commit"]
    folder = snapshot_download(REPO)
    assert open(f"{folder}/a/model.safetensors", "rb").read() == large
    assert [token for endpoint, _, _, token in hub.requests if endpoint == "get"] == [None]
    assert open(hf_hub_download(REPO, "config.json", revision=oid), "rb").read() == b"{}"


def test_a_process_of_its_own_pushes_with_the_environment_alone(hub, tmp_path):
    code = "from huggingface_hub import HfApi as A; A().create_repo('org/name'); print(A().repo_info('org/name').sha)"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | hub.env(tmp_path / "other"), text=True,
                          capture_output=True, check=True)
    assert done.stdout.strip() == hub.repos[REPO].at().oid


def test_one_commit_adds_and_deletes_and_a_stale_parent_is_refused(hub):
    hub.seed(REPO, {"old/a.json": b"1", "old/b.pt": b"2", "keep.json": b"3"})
    api = HfApi()
    head = api.repo_info(REPO).sha
    operations = [add("new/a.json", b"4"), CommitOperationDelete("old/")]
    api.create_commit(REPO, operations, commit_message="both", parent_commit=head)
    assert hub.files(REPO) == {"new/a.json": b"4", "keep.json": b"3"}
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit(REPO, [add("c.json", b"5")], commit_message="late", parent_commit=head)
    with pytest.raises(EntryNotFoundError):
        api.create_commit(REPO, [add("d.json", b"6"), CommitOperationDelete("old/")], commit_message="gone")
    assert "d.json" not in hub.files(REPO)


def test_a_repeated_push_is_no_commit(hub):
    hub.seed(REPO, {"a.json": b"1", "b.pt": b"2"})
    HfApi().create_commit(REPO, [add("a.json", b"1"), add("b.pt", b"2")], commit_message="again")
    assert hub.commits(REPO) == ["seed", "initial commit"]


def test_the_tree_comes_in_pages_with_sizes_and_hashes(hub):
    names = ("config.json", "model.safetensors")
    hub.seed(REPO, {f"checkpoint-{i}/{name}": b"x" * i for i in (1, 2, 3) for name in names})
    hub.page = 2
    found = {entry.path: entry for entry in HfApi().list_repo_tree(REPO, recursive=True)}
    assert len(found) == 9 and found["checkpoint-2/config.json"].size == 2
    assert found["checkpoint-3/model.safetensors"].lfs.size == 3 and asked(hub).count("tree") == 5
    assert [entry.path for entry in HfApi().list_repo_tree(REPO, "checkpoint-1")] == [
        "checkpoint-1/config.json", "checkpoint-1/model.safetensors"]


def test_squashing_keeps_the_files_and_lfs_objects_can_be_deleted(hub):
    for i in range(3):
        hub.seed(REPO, {"model.safetensors": bytes([i])})
    api = HfApi()
    assert len(api.list_repo_commits(REPO)) == 4 and len(list(api.list_lfs_files(REPO))) == 3
    api.super_squash_history(REPO)
    assert len(api.list_repo_commits(REPO)) == 1 and hub.files(REPO) == {"model.safetensors": b"\2"}
    kept = hub.repos[REPO].at().files["model.safetensors"].sha256
    old = [file for file in api.list_lfs_files(REPO) if file.oid != kept]
    api.permanently_delete_lfs_files(REPO, old)
    assert len(hub.blobs) == 1


@pytest.mark.parametrize("token, repo, told", [("hf_other", "org/new", "401"), ("hf_stub", "elsewhere/new", "403")])
def test_who_may_not_write_is_refused(hub, token, repo, told):
    with pytest.raises(HfHubHTTPError, match=told):
        HfApi(token=token).create_repo(repo)


def test_what_is_private_is_hidden(hub):
    HfApi().create_repo(REPO, private=True)
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token=False).repo_info(REPO)
    with pytest.raises(RepositoryNotFoundError):
        HfApi().repo_info("org/no-such")


@pytest.mark.parametrize("kind", [403, 409, 413, 500, "reset", "silent", "mute", "lost", "cut", "html", "quota"])
def test_a_fault_at_the_commit_reaches_the_client_and_ends(hub, impatient, kind):
    hub.seed(REPO, {})
    hub.fault("commit", kind, times=1)
    with pytest.raises((HfHubHTTPError, httpx2.TransportError, ValueError)):
        impatient.create_commit(REPO, [add("a.json", b"1")], commit_message="first")
    done = kind in ("lost", "mute", "cut")
    assert ("a.json" in hub.files(REPO)) == done
    impatient.create_commit(REPO, [add("a.json", b"1")], commit_message="second")
    assert hub.commits(REPO)[0] == ("first" if done else "second")


@pytest.mark.parametrize("kind", [503, "reset", "lost"])
def test_the_client_repeats_what_may_be_repeated(hub, kind, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.seed(REPO, {})
    hub.fault("put", kind, times=2)
    HfApi().create_commit(REPO, [add("a.pt", b"1")], commit_message="first")
    assert hub.files(REPO) == {"a.pt": b"1"} and asked(hub).count("put") == 3


def test_a_flipped_bit_and_a_cut_download_reach_the_client(hub):
    data = os.urandom(2000)
    hub.seed(REPO, {"a.pt": data})
    hub.fault("get", "cut", times=1)
    assert open(hf_hub_download(REPO, "a.pt"), "rb").read() == data   # goes on where it was cut
    hub.seed(REPO, {"a.pt": data[::-1]})
    hub.fault("get", "flip", times=1)
    flipped = open(hf_hub_download(REPO, "a.pt"), "rb").read()
    assert sum(a != b for a, b in zip(flipped, data[::-1])) == 1


def test_a_slow_answer_ends_with_the_fault(hub, impatient):
    hub.seed(REPO, {})
    fault = hub.fault("commit", "slow", times=1, rate=10**6)
    impatient.create_commit(REPO, [add("a.json", b"1" * 1000)], commit_message="slowly")
    assert fault.times == 0 and hub.files(REPO)["a.json"] == b"1" * 1000


def test_the_fixture_leaves_the_client_offline_as_it_was():
    assert constants.HF_HUB_OFFLINE and "HF_TOKEN" not in os.environ
