"""One try to push: whole or not at all, once, and told by what went wrong."""

import shutil
from dataclasses import replace

import pytest
from huggingface_hub import HfApi, constants, get_session
from pushes import HASTY, HELD, PATIENT, REPO, entry, whole

from bitgen.outbox import CARD, ROOT
from bitgen.repository import blob_id, client
from bitgen.upload import Job, attempt


@pytest.fixture
def quick(hub, monkeypatch):
    """A Hub with an empty repository, and a client that repeats without waiting."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.seed(REPO, {})
    return hub


LATER = {"Retry-After": "3600"}
FAULTS = [  # endpoint, what happens there, its headers, and what the try makes of it
    ("info", 401, {}, "auth"), ("info", 404, {"X-Error-Code": "RepoNotFound"}, "auth"),
    ("info", "silent", {}, "transient"), ("info", "html", {}, "transient"),
    ("tree", 503, {}, "transient"), ("tree", "cut", {}, "transient"),
    ("preupload", 403, {}, "auth"), ("preupload", 429, LATER, "transient"), ("preupload", 500, {}, "transient"),
    ("preupload", "silent", {}, "transient"), ("preupload", "html", {}, "transient"),
    ("batch", "quota", {}, "quota"), ("batch", 502, {}, "transient"), ("batch", "reset", {}, "transient"),
    ("put", 503, {}, "transient"), ("put", "reset", {}, "transient"), ("put", "silent", {}, "transient"),
    ("put", 413, {}, "quota"), ("put", "html", {}, "transient"), ("verify", 504, {}, "transient"),
    ("verify", 401, {}, "auth"),
    ("commit", 400, {}, "bug"), ("commit", 401, {}, "auth"), ("commit", 403, {}, "auth"),
    ("commit", 404, {}, "auth"), ("commit", 409, {}, "conflict"), ("commit", 412, {}, "conflict"),
    ("commit", 413, {}, "quota"), ("commit", 429, {}, "transient"), ("commit", 500, {}, "transient"),
    ("commit", 429, {"RateLimit": '"api";r=0;t=240'}, "transient"), ("commit", "quota", {}, "quota"),
    ("commit", "reset", {}, "transient"), ("commit", "lost", {}, "transient"), ("commit", "mute", {}, "transient"),
    ("commit", "cut", {}, "transient"), ("commit", "html", {}, "transient"),
    ("validate", 503, {}, "transient"), ("validate", "html", {}, "transient"),
]


@pytest.mark.parametrize("endpoint, fault, headers, kind", FAULTS, ids=lambda value: str(value) if value else "")
def test_a_fault_is_told_by_its_kind_and_the_next_try_lands_once(quick, tmp_path, endpoint, fault, headers, kind):
    tmp_path.joinpath("README.md").write_text("---\nlicense: mit\n---\n")
    job = entry(tmp_path, 100)
    quick.fault(endpoint, fault, headers=headers)
    outcome = attempt(replace(job, limits=HASTY) if fault in ("silent", "mute") else job)
    assert (outcome.kind, outcome.commit) == (kind, None) and outcome.reason and "hf_stub" not in outcome.reason
    assert outcome.wait == {"Retry-After": 3600, "RateLimit": 240}.get(next(iter(headers), None), 0)
    assert whole(quick.files(REPO)) == ([100] if fault in ("lost", "mute", "cut") and endpoint == "commit" else [])
    quick.clear()
    again = attempt(job)
    assert again.kind == "done" and again.commit == quick.repos[REPO].at().oid
    assert whole(quick.files(REPO)) == [100] and quick.commits(REPO).count("checkpoint-100") == 1


def test_a_push_is_one_commit_of_checkpoint_root_and_card_and_uploads_the_weights_once(quick, tmp_path):
    for name in CARD:
        tmp_path.joinpath(name).write_text("---\nlicense: mit\n---\n")
    quick.requests.clear()
    assert attempt(entry(tmp_path, 100)).new
    files = quick.files(REPO)
    assert whole(files) == [100] and files.keys() == {*ROOT, *CARD, "checkpoint-100/MANIFEST.json",
                                                      "checkpoint-100/checkpoint-100.pt",
                                                      *(f"checkpoint-100/{name}" for name in HELD)}
    asked = [endpoint for endpoint, *_ in quick.requests]
    assert asked.count("commit") == 1 and asked.count("put") == 3   # weights, state and the card's picture


def test_a_commit_deletes_what_rotates_out_and_nothing_that_is_not_a_checkpoint(quick, tmp_path):
    quick.seed(REPO, {"checkpoint-1/a.pt": b"1", "checkpoint-2/a.pt": b"2", "notes/a.txt": b"3"}
               | {f"checkpoint-{step}/MANIFEST.json": b"{%d}" % step for step in (1, 2)})
    job = replace(entry(tmp_path, 100), owned={"checkpoint-1": blob_id(b"{1}"), "checkpoint-9": blob_id(b"{9}")})
    assert attempt(replace(job, doomed=("checkpoint-1", "checkpoint-9"))).kind == "done"
    before = quick.files(REPO)
    assert {path.split("/")[0] for path in before if "/" in path} == {"checkpoint-2", "checkpoint-100", "notes"}
    for bad in ("notes", "checkpoint-1x", "checkpoint-2/..", ""):
        assert attempt(replace(job, doomed=(bad,))).kind == "bug"
    assert quick.files(REPO) == before


def test_two_writers_of_one_repository_lose_no_file(quick, tmp_path, monkeypatch):
    mine, theirs = entry(tmp_path / "mine", 100), entry(tmp_path / "theirs", 150)
    send = HfApi.create_commit

    def overtaken(self, *arguments, **named):
        monkeypatch.setattr(HfApi, "create_commit", send)
        assert attempt(theirs).new
        return send(self, *arguments, **named)

    monkeypatch.setattr(HfApi, "create_commit", overtaken)
    outcome = attempt(mine)
    assert outcome.kind == "done" and quick.commits(REPO)[:2] == ["checkpoint-100", "checkpoint-150"]
    assert whole(quick.files(REPO)) == [100, 150]


def test_twenty_pushes_whose_answers_are_lost_are_twenty_commits(quick, tmp_path):
    for step in range(1, 21):
        job = entry(tmp_path, step)
        quick.fault("commit", ("lost", "cut")[step % 2], times=1)
        assert attempt(job).kind == "transient"
        found = attempt(job)
        assert (found.kind, found.new, found.commit) == ("done", False, quick.repos[REPO].at().oid)
    assert quick.commits(REPO)[:20] == [f"checkpoint-{step}" for step in range(20, 0, -1)]
    assert len(quick.commits(REPO)) == 22 and whole(quick.files(REPO)) == list(range(1, 21))


def test_a_card_that_the_hub_refuses_does_not_keep_the_weights_back(quick, tmp_path):
    tmp_path.joinpath("README.md").write_text("no front matter")
    outcome = attempt(entry(tmp_path, 100))
    assert outcome.new and "without README.md" in outcome.reason
    assert whole(quick.files(REPO)) == [100] and "README.md" not in quick.files(REPO)


def test_a_repository_that_is_gone_is_not_made_again(quick, tmp_path):
    job = entry(tmp_path, 100)
    del quick.repos[REPO]
    gone = attempt(replace(job, create=False))
    assert gone.kind == "auth" and "no such repository" in gone.reason and REPO not in quick.repos
    assert attempt(job).new and whole(quick.files(REPO)) == [100]


@pytest.mark.parametrize("change, told", [
    ({"role": "read"}, "may only read"), ({"orgs": ()}, "'ann' may not write to 'org'"),
    ({"token": "hf_new"}, "hf auth login"),
])
def test_whether_a_run_may_push_is_known_at_its_start(quick, change, told):
    vars(quick).update(change)
    outcome = attempt(Job(REPO, limits=PATIENT))
    assert outcome.kind == "auth" and told in outcome.reason


def test_a_reason_is_one_line_without_the_token_whatever_the_hub_says(quick, tmp_path):
    quick.fault("commit", 403, message="no\nright\twith hf_stub " + "x" * 5000)
    reason = attempt(entry(tmp_path, 100)).reason
    assert reason.startswith("the token has no right to write there (403 no right with … xxx") and len(reason) == 400


def test_a_client_that_is_told_to_stay_offline_says_so(quick, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    outcome = attempt(Job(REPO, limits=PATIENT))
    assert outcome.kind == "auth" and "HF_HUB_OFFLINE" in outcome.reason


def test_checking_makes_the_repository_and_a_conflict_without_end_is_no_busy_loop(quick):
    assert attempt(Job("ann/new", private=True, limits=PATIENT)).kind == "done" and quick.repos["ann/new"].private
    quick.fault("create", 409, message="Cannot create repo: another conflicting operation is in progress")
    quick.requests.clear()
    assert attempt(Job("ann/other", limits=PATIENT)).kind == "conflict"
    assert [endpoint for endpoint, *_ in quick.requests].count("create") == 1


def test_what_is_gone_from_the_outbox_meanwhile_is_not_told_as_pushed(quick, tmp_path):
    job = entry(tmp_path, 100)
    quick.seed(REPO, {"checkpoint-1/a.pt": b"1"})
    shutil.rmtree(job.folder)
    outcome = attempt(replace(job, doomed=("checkpoint-1",)))
    assert outcome.kind == "bug" and "checkpoint-1/a.pt" in quick.files(REPO)


def test_limits_replace_one_another(hub):
    """A session that is asked for again and again keeps one limit, the last, and not all of them."""
    kept = []
    for read in (1.0, 2.0, 3.0):
        client(replace(PATIENT, read=read))
        kept.append(len(get_session().event_hooks["request"]))
    assert kept[0] == kept[2]
    request = get_session().build_request("GET", hub.url)
    for hook in get_session().event_hooks["request"]:
        hook(request)
    assert request.extensions["timeout"]["read"] == 3.0
