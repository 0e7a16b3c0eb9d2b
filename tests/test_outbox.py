"""What waits to be pushed and what was: by repository, and whatever becomes of the folder."""

import errno
import json
import os
import shutil

import pytest
from pushes import REPO, publisher, record, save, wait_for, whole

from bitgen.outbox import STATE, Outbox, State
from bitgen.push import push_run


def stale(path):
    raise OSError(errno.ESTALE, "Stale file handle")


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
