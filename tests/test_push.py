"""Pushing to the Hub: whole or not at all, once, in the end, and never at training's expense."""

import errno
import io
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from huggingface_hub import HfApi, constants

from bitgen import checkpoint
from bitgen.cli import main
from bitgen.config import HubConfig
from bitgen.outbox import CARD, ROOT, STATE, Outbox, State
from bitgen.push import Publisher, push_run
from bitgen.repository import Limits, blob_id
from bitgen.upload import Job, attempt

REPO = "org/name"
PATIENT = Limits(connect=30, read=30, deadline=60, first_wait=0.01, longest_wait=0.02, commits_per_hour=100)
HASTY = replace(PATIENT, read=0.3)  # for servers that never answer
HELD = ("model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json", "metrics.json", "run.json")


@pytest.fixture
def quick(hub, monkeypatch):
    """A Hub with an empty repository, and a client that repeats without waiting."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.seed(REPO, {})
    return hub


def save(run, step, size=2000, keep=5):
    """A checkpoint of random bytes, as the trainer lays it out."""
    noise = random.Random(step)
    writers = {name: lambda path: path.write_bytes(noise.randbytes(size)) for name in HELD}
    return checkpoint.save(run, step, writers | {f"checkpoint-{step}.pt": writers["run.json"]}, keep=keep)


def entry(run, step):
    """A checkpoint in the outbox of a run, as a job for one try."""
    save(run, step)
    outbox = Outbox(run, REPO)
    folder = outbox.add(step)
    outbox.close()
    return Job(REPO, folder=str(folder), limits=PATIENT)


def publisher(run, told=None, limits=PATIENT, **settings):
    return Publisher(run, HubConfig(repo=REPO, **settings), limits, tell=(told if told is not None else []).append)


def whole(files):
    """Steps of the checkpoints among `files` (path -> bytes), each checked to be all there, as is the root."""
    import hashlib

    steps = sorted({int(path.split("/")[0].removeprefix("checkpoint-")) for path in files if "/" in path})
    for step in steps:
        below = f"checkpoint-{step}/"
        listed = json.loads(files[below + "MANIFEST.json"])["files"]
        assert {path.removeprefix(below) for path in files if path.startswith(below)} == {*listed, "MANIFEST.json"}
        for name, (size, sha256) in listed.items():
            assert len(files[below + name]) == size and hashlib.sha256(files[below + name]).hexdigest() == sha256
    if steps:
        assert any(all(files[name] == files[f"checkpoint-{step}/{name}"] for name in ROOT) for step in steps)
    return steps


def record(run, hub, repo=REPO):
    """What a run remembers of a repository."""
    return json.loads((run / STATE).read_text())[f"{hub.url}/{repo}"]


# One try ----------------------------------------------------------------------------------------------------

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


# A run ------------------------------------------------------------------------------------------------------


def test_the_newest_and_the_best_stay_and_only_what_this_run_pushed_goes(hub, tmp_path):
    hub.seed(REPO, {"notes.md": b"another's", "checkpoint-7/config.json": b"another run's"})
    run = publisher(tmp_path, keep=1)
    for step in (100, 200, 300):
        save(tmp_path, step)
        run.offer(step, best_step=100)
        wait_for(lambda step=step: run.status().landed == step)
    assert run.close(60).complete
    files = hub.files(REPO)
    assert (files.pop("notes.md"), files.pop("checkpoint-7/config.json")) == (b"another's", b"another run's")
    assert whole(files) == [100, 300] == record(tmp_path, hub)["pushed"]


def test_of_two_runs_in_one_repository_neither_replaces_nor_deletes_the_others_checkpoints(hub, tmp_path):
    hub.seed(REPO, {})
    told, first, second = [], publisher(tmp_path / "first", keep=1), publisher(tmp_path / "second", keep=1)
    second.tell = told.append

    def push(run, step, size):
        save(run.run, step, size)
        run.state.last = {}
        run.offer(step)
        wait_for(lambda: run.state.last)
        return run.status()

    assert push(first, 1, 2000).complete
    before = hub.files(REPO)
    status = push(second, 1, 2100)
    assert not status.complete and hub.files(REPO) == before and len(told) == 1
    assert f"{REPO} holds a checkpoint-1 that this run did not push: take another --hub.repo" in status.reason
    assert push(second, 2, 2100).complete and whole(hub.files(REPO)) == [1, 2]
    assert push(second, 2, 2200).complete and whole(hub.files(REPO)) == [1, 2]     # its own, trained once more
    assert push(first, 3, 2000).complete and whole(hub.files(REPO)) == [2, 3]
    hub.seed(REPO, {"checkpoint-3/MANIFEST.json": b"{}"})
    assert push(first, 4, 2000).complete and hub.files(REPO)["checkpoint-3/MANIFEST.json"] == b"{}"
    first.close(5), second.close(5)


def wait_for(condition, seconds=60):
    """A hang guard."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def test_what_is_overtaken_is_dropped_the_last_lands_and_readers_see_whole_states(hub, tmp_path):
    told, run = [], None
    hub.seed(REPO, {})
    seen, done = set(), threading.Event()

    def poll():
        while not done.wait(0.01):
            seen.update(whole(hub.files(REPO)))

    reader = threading.Thread(target=poll)
    reader.start()
    run = publisher(tmp_path, told)
    for step in range(1, 61):
        save(tmp_path, step, keep=2)          # rotates away what still waits or is on its way
        run.offer(step)
        if step == 10:
            hub.fault("commit", 503)          # from here on all is overtaken, however fast pushing is
    hub.clear()
    status = run.close(60)
    done.set()
    reader.join()
    assert status.complete and status.landed == 60 and "checkpoint-60" in str(status)
    at_most = 1 + 10 + 1 + 1                  # the empty repository, the first ten, what was on its way, the last
    assert 60 in whole(hub.files(REPO)) and len(hub.commits(REPO)) <= at_most and seen <= set(range(1, 61))
    assert list((tmp_path / "outbox").glob("*/0*")) == []


def test_twelve_commits_an_hour_and_the_last_one_in_any_case(hub, tmp_path):
    now = time.time()
    (tmp_path / STATE).write_text(json.dumps({f"{hub.url}/{REPO}": {"commits": [now] * 10}}))
    run = publisher(tmp_path, limits=Limits(first_wait=0.01))
    hub.seed(REPO, {})
    for step in (1, 2):
        save(tmp_path, step)
        run.offer(step)
        if step == 1:
            wait_for(lambda: run.status().landed == 1)
    waits = run.limits.commits_per_hour == 12 and run._pause()
    assert waits > 3500 and hub.commits(REPO)[0] == "checkpoint-1"
    assert run.close(30).complete and hub.commits(REPO)[0] == "checkpoint-2"
    assert len(record(tmp_path, hub)["commits"]) == 12


def test_a_hub_that_is_down_costs_training_nothing_and_the_newest_lands_when_it_is_back(hub, tmp_path):
    told = []
    hub.seed(REPO, {})
    fault = hub.fault("*", "reset")
    run = publisher(tmp_path, told)
    run.check()                                 # a warning, since it may be back by the first push
    for step in (1, 2):
        save(tmp_path, step)
        run.offer(step)
    wait_for(lambda: run.status().reason)
    status = run.status()
    assert (status.wanted, status.landed, status.complete) == (2, None, False) and "not checkpoint-2" in str(status)
    fault.times = 0
    assert run.close(60).landed == 2 and whole(hub.files(REPO))[-1] == 2
    assert sum(line.startswith("warning") for line in told) <= 3 and told[-1].startswith("pushed checkpoint-2")


def test_a_refusal_is_not_repeated_until_there_is_something_new(hub, tmp_path):
    told = []
    hub.seed(REPO, {})
    hub.fault("commit", 403)
    run = publisher(tmp_path, told)
    save(tmp_path, 1)
    run.offer(1)
    status = run.close(30)
    assert [endpoint for endpoint, *_ in hub.requests].count("commit") == 1
    assert not status.complete and "no right to write" in status.reason and len(told) == 1
    hub.clear()
    again = publisher(tmp_path)                 # the next start of the run
    assert again.close(30).landed == 1 and hub.commits(REPO)[0] == "checkpoint-1"


def test_a_try_without_an_end_is_killed_and_made_again(hub, tmp_path):
    hub.seed(REPO, {})
    hub.fault("tree", "silent", times=1)
    run = publisher(tmp_path, limits=replace(PATIENT, deadline=3))
    save(tmp_path, 1)
    run.offer(1)
    wait_for(lambda: run.state.last)
    assert "no end after 3 s" in run.state.last["reason"] and run.state.last["kind"] == "transient"
    run.limits = PATIENT
    assert run.close(60).complete


def test_killing_the_pushing_process_loses_nothing_and_pushes_nothing_twice(hub, tmp_path):
    hub.seed(REPO, {})
    points = ["info", "tree", "preupload", "batch", "put", "verify", "commit"]
    fault = [hub.fault(endpoint, "silent", times=1) for endpoint in points] + [hub.fault("commit", "mute", times=1)]
    run = publisher(tmp_path, limits=PATIENT)
    save(tmp_path, 1)
    run.offer(1)
    for met in fault:  # one process may meet two of them at once, and be gone when the second is looked at
        wait_for(lambda met=met: met.times == 0)
        if process := run._process:
            process.kill()
    assert run.close(60).complete and whole(hub.files(REPO)) == [1]
    assert hub.commits(REPO).count("checkpoint-1") == 1


def test_a_run_that_is_killed_while_it_pushes_pushes_the_rest_when_it_starts_again(hub, tmp_path):
    hub.seed(REPO, {})
    hub.fault("preupload", "silent")
    save(tmp_path, 1)
    code = ("import sys, time; from bitgen.push import Publisher; from bitgen.config import HubConfig; "
            f"p = Publisher(sys.argv[1], HubConfig(repo={REPO!r})); p.offer(1); time.sleep(60)")
    trainer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    wait_for(lambda: any(endpoint == "preupload" for endpoint, *_ in hub.requests))
    with pytest.raises(ValueError, match="another process is pushing this run"):
        publisher(tmp_path)
    trainer.kill()
    trainer.wait()
    hub.clear()                                 # the orphan may finish its push, or may not
    run = publisher(tmp_path)
    run.check()
    assert run.close(60).landed == 1
    assert whole(hub.files(REPO)) == [1] and hub.commits(REPO).count("checkpoint-1") == 1


def test_the_token_is_nowhere(hub, tmp_path):
    hub.seed(REPO, {})
    hub.fault("commit", 401, times=1)
    save(tmp_path, 1)
    commands, told, run = [], [], publisher(tmp_path)
    run.tell = told.append
    run.offer(1)
    while not run.state.last:
        if (process := run._process) is not None and process.poll() is None:
            commands.append(open(f"/proc/{process.pid}/cmdline", "rb").read())
        time.sleep(0.02)
    run.offer(1)
    assert run.close(60).complete and commands
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    stored = [file.data for commit in hub.repos[REPO].commits.values() for file in commit.files.values()]
    assert not [text for text in written + stored + commands + [repr(told).encode()] if b"hf_stub" in text]


def test_a_finished_run_is_pushed_by_hand_and_again_without_a_commit(hub, tmp_path):
    save(tmp_path, 10)
    save(tmp_path, 20)
    damaged = tmp_path / "checkpoint-20" / "config.json"
    damaged.write_bytes(damaged.read_bytes()[::-1])
    for _ in range(2):
        assert push_run(tmp_path, REPO, private=True).landed == 10
    assert hub.repos[REPO].private and hub.commits(REPO) == ["checkpoint-10", "initial commit"]
    with pytest.raises(ValueError, match="no checkpoint to push"):
        push_run(tmp_path / "checkpoint-10", REPO)


def test_pushing_by_hand_keeps_on_the_hub_what_the_run_does(hub, tmp_path):
    hub.seed(REPO, {})
    run = publisher(tmp_path, keep=2)
    for step in (1, 2, 3):
        save(tmp_path, step)
        run.offer(step, best_step=1)
        wait_for(lambda step=step: run.status().landed == step)
    run.close(60)
    (tmp_path / "run.json").write_text(json.dumps({"hub": {"repo": REPO, "keep": 2, "private": True}}))
    save(tmp_path, 4)
    assert push_run(tmp_path, REPO).landed == 4
    assert whole(hub.files(REPO)) == [1, 3, 4]
    del hub.repos[REPO]
    (tmp_path / STATE).unlink()
    assert push_run(tmp_path, REPO).complete and hub.repos[REPO].private       # the run's wish
    assert push_run(tmp_path, "org/other").complete and not hub.repos["org/other"].private


def test_the_best_is_remembered_before_anything_lands(hub, tmp_path):
    hub.fault("*", 403)
    run = publisher(tmp_path)
    save(tmp_path, 2)
    run.offer(2, best_step=1)
    assert record(tmp_path, hub)["best"] == 1
    run.close(0)


def test_settings_that_are_none_are_an_error_before_anything_is_pushed(hub, tmp_path):
    save(tmp_path, 1)
    (tmp_path / "run.json").write_text('{"hub": {"keep": "many"}}')
    with pytest.raises(ValueError, match="run.json: setting 'hub.keep'"):
        push_run(tmp_path, REPO)
    assert REPO not in hub.repos


def test_the_command_line_pushes_lists_and_squashes(hub, tmp_path, capsys, monkeypatch):
    save(tmp_path, 20)
    hub.seed(REPO, {"checkpoint-3/model.safetensors": b"3"})
    assert main(["push", str(tmp_path), "--repo", REPO]) == 0
    assert f"{REPO} on the Hub holds checkpoint-20" in capsys.readouterr().out
    before = hub.files(REPO)
    assert main(["hub", "list", REPO]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "3 commits" in told[0]
    assert [line.split()[0] for line in told[1:]] == ["checkpoint-20", "checkpoint-3", "beside"]
    for answer, commits in (("", 3), ("no\n", 3), ("y\n", 1)):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        assert main(["hub", "gc", REPO]) == 0 and len(hub.commits(REPO)) == commits
    assert "in use" in capsys.readouterr().out and hub.files(REPO) == before
    hub.fault("commit", 403)
    save(tmp_path, 30)
    assert main(["push", str(tmp_path), "--repo", REPO]) == 75
    assert "not checkpoint-30: the token has no right to write there" in capsys.readouterr().err
    assert main(["hub", "gc", "org/no-such", "--yes"]) == 65
    assert "no such repository" in capsys.readouterr().err


@pytest.mark.parametrize("repo", ["name", "a/b/c", "org/na me", "", None])
def test_a_name_that_is_none_is_refused(repo, tmp_path):
    with pytest.raises(ValueError, match="expected ORG/NAME"):
        Publisher(tmp_path, HubConfig(repo=repo))


def test_who_may_not_push_learns_it_in_one_line_at_the_start(hub, tmp_path):
    run = Publisher(tmp_path, HubConfig(repo="elsewhere/name"))
    with pytest.raises(ValueError, match="'ann' may not write to 'elsewhere'; where it may: org, ann") as error:
        run.check()
    assert "\n" not in str(error.value)
    run.close()


def test_a_push_to_another_repository_leaves_what_is_known_of_and_waits_for_the_first(hub, tmp_path):
    hub.seed(REPO, {})
    run = publisher(tmp_path, keep=1)
    save(tmp_path, 1)
    run.offer(1)
    assert run.close(60).complete
    run = publisher(tmp_path, keep=1)
    hub.fault("*", 403)
    save(tmp_path, 2)
    run.offer(2)
    assert not run.close(60).complete
    hub.clear()
    save(tmp_path, 3)
    assert push_run(tmp_path, "org/other").complete
    assert whole(hub.files("org/other")) == [3] and whole(hub.files(REPO)) == [1]
    assert (record(tmp_path, hub)["pushed"], record(tmp_path, hub, "org/other")["pushed"]) == ([1], [3])
    run = publisher(tmp_path, keep=1)
    assert run.close(60).landed == 2 and whole(hub.files(REPO)) == [2]
    assert record(tmp_path, hub, "org/other")["pushed"] == [3]


def test_a_record_of_one_repository_as_it_was_once_written_is_read(tmp_path):
    old = {"pushed": [1, 2], "best": 1}
    (tmp_path / STATE).write_text(json.dumps({"repository": "a/b"} | old))
    assert State.read(tmp_path / STATE, "a/b").pushed == [1, 2] and State.read(tmp_path / STATE, "a/c").pushed == []


def test_a_damaged_record_of_pushes_is_an_error_and_not_an_empty_one(tmp_path):
    (tmp_path / STATE).write_text("{")
    with pytest.raises(ValueError, match=f"{STATE}: not a record"):
        publisher(tmp_path)


def test_a_record_that_is_damaged_meanwhile_costs_training_nothing(hub, tmp_path):
    hub.seed(REPO, {})
    run = publisher(tmp_path)
    (tmp_path / STATE).write_text("{")
    save(tmp_path, 1)
    run.offer(1)
    assert run.close(60).complete


def test_a_checkpoint_that_cannot_be_queued_is_a_warning_and_in_the_status(hub, tmp_path):
    told = []
    run = publisher(tmp_path, told)
    run.offer(5)
    status = run.close(5)
    assert not status.complete and "checkpoint-5 could not be queued" in status.reason and told[0].startswith("warning")


def test_an_outbox_that_is_removed_costs_training_nothing(hub, tmp_path):
    hub.seed(REPO, {})
    hub.fault("*", 503)
    run = publisher(tmp_path)
    save(tmp_path, 1)
    run.offer(1)
    wait_for(lambda: run.state.last)
    shutil.rmtree(tmp_path / "outbox")
    assert not run.status().complete and "outbox" in run.status().reason
    hub.clear()
    save(tmp_path, 2)
    run.offer(2)
    assert run.close(60).complete and whole(hub.files(REPO)) == [2]


def test_an_outbox_that_cannot_be_listed_is_a_warning(hub, tmp_path, monkeypatch):
    told = []
    hub.seed(REPO, {})
    run = publisher(tmp_path, told)
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "iterdir", stale)
        run.offer(1)
        assert "checkpoint-1 could not be queued" in run.status().reason and told[0].startswith("warning")
    run.offer(1)
    assert run.close(60).complete


def stale(path):
    raise OSError(errno.ESTALE, "Stale file handle")


def test_what_is_gone_from_the_outbox_meanwhile_is_not_told_as_pushed(quick, tmp_path):
    job = entry(tmp_path, 100)
    quick.seed(REPO, {"checkpoint-1/a.pt": b"1"})
    shutil.rmtree(job.folder)
    outcome = attempt(replace(job, doomed=("checkpoint-1",)))
    assert outcome.kind == "bug" and "checkpoint-1/a.pt" in quick.files(REPO)


def test_folders_in_the_outbox_that_are_no_entries_are_left_alone(tmp_path):
    save(tmp_path, 1)
    outbox = Outbox(tmp_path, REPO)
    (outbox.folder / ".ipynb_checkpoints").mkdir(parents=True)
    assert [outbox.add(1)] == outbox.entries()
    outbox.close()


@pytest.mark.parametrize("number, told", [(errno.EAGAIN, "another process is pushing this run"), (errno.ENOLCK, "")])
def test_a_file_system_without_locks_is_told_from_another_process(tmp_path, capsys, monkeypatch, number, told):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.lockf", refused)
    if told:
        with pytest.raises(ValueError, match=told):
            Outbox(tmp_path, REPO)
    else:
        Outbox(tmp_path, REPO).close()
        assert "No locks available" in capsys.readouterr().err
