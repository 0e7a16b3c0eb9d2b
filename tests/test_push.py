"""Pushing to the Hub: whole or not at all, once, in the end, and never at training's expense."""

import io
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from pushes import PATIENT, REPO, publisher, record, save, wait_for, whole

from bitgen.cli import main
from bitgen.config import HubConfig
from bitgen.outbox import STATE
from bitgen.push import Publisher, push_run
from bitgen.repository import Limits
from bitgen.upload import Job, Outcome


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


@pytest.mark.parametrize("asked, waited", [([0], 1), ([0, 0, 0], 4), ([30], 30), ([0, 0, 3], 4), ([5000], 100),
                                           ([0] * 9, 100)])
def test_tries_come_ever_later_or_as_the_hub_asks_but_within_the_limit(tmp_path, asked, waited):
    run = publisher(tmp_path, limits=Limits(first_wait=1, longest_wait=100))
    for wait in asked:
        run._failed(tmp_path, Outcome("transient", "busy", wait))
    assert waited - 0.5 < run._pause() <= waited
    run.close(0)


def test_files_go_the_plain_way_unless_the_user_wants_xet(tmp_path, monkeypatch):
    wanted, run = [], publisher(tmp_path)

    def refused(*_, env, **__):
        wanted.append(env["HF_HUB_DISABLE_XET"])
        raise OSError("no more processes")

    monkeypatch.setattr("bitgen.push.subprocess.Popen", refused)
    for told in (None, "0"):
        monkeypatch.delenv("HF_HUB_DISABLE_XET", raising=False) if told is None else monkeypatch.setenv(
            "HF_HUB_DISABLE_XET", told)
        assert run._ask(Job(REPO)) == Outcome("transient", "no process to push with: no more processes")
    assert wanted == ["1", "0"]
    run.close(0)


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


@pytest.mark.parametrize("content, reason", [
    ('{"hub": {"keep": "many"}}', "setting 'hub.keep'"), ("", "not readable"), ('{"hub": {"priv', "not readable"),
    ("[]", "expected the settings of a run"), ("{}", "expected the settings of a run")])
def test_settings_that_are_none_are_an_error_before_anything_is_pushed(hub, tmp_path, content, reason):
    """Usual settings would make a private run public."""
    save(tmp_path, 1)
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=f"run.json: {reason}"):
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
