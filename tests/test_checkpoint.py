"""Checkpoints: crashes at every step of a save, damage to every byte, full disks, rotation."""

import errno
import json
import os
import random
import shutil
import traceback
from pathlib import Path

import pytest

from bitgen import checkpoint
from bitgen.checkpoint import MANIFEST, CheckpointError, course, newest, publish, replace_text, rotate, save, verify


def writers(step: int, size: int = 300) -> dict:
    """Two files whose content follows from the step."""
    content = {"model.safetensors": bytes([step % 251]) * size, "metrics.json": b'{"step": %d}' % step}
    return {name: lambda path, data=data: path.write_bytes(data) for name, data in content.items()}


def steps(run: Path) -> set[int]:
    return {int(p.name.split("-")[1]) for p in run.glob("checkpoint-*") if p.name.split("-")[1].isdigit()}


def assert_content(folder: Path, step: int) -> None:
    assert (folder / "model.safetensors").read_bytes() == bytes([step % 251]) * 300
    assert (folder / "metrics.json").read_bytes() == b'{"step": %d}' % step


def dies(k: int, act) -> bool:
    """Whether a process that does `act` is gone (`os._exit`) at its k-th change of the disk; else it ends unharmed."""
    if (pid := os.fork()) == 0:
        calls = 0

        def wrap(function):
            def called(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls > k:
                    os._exit(9)
                return function(*args, **kwargs)
            return called

        for owner, names in ((os, ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync")),
                             (Path, ("write_bytes", "write_text", "unlink")), (shutil, ("copyfile",))):
            for name in names:
                setattr(owner, name, wrap(getattr(owner, name)))
        try:
            act()
        except BaseException:
            traceback.print_exc()
            os._exit(70)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 9)
    return status == 9


def crash_points(tmp_path: Path, prepare, act):
    """Yields a prepared run folder after `act` was killed at its k-th change, for every k until `act` ends unharmed."""
    for k in range(1000):
        run = tmp_path / f"killed-{k}"
        prepare(run)
        killed = dies(k, lambda run=run: act(run))
        yield run
        if not killed:
            assert k > 5, "too few crash points: is the writer still wrapped?"
            return


# Saving and reading -----------------------------------------------------------------------------------------


def test_what_is_saved_is_whole_and_newest(tmp_path):
    assert newest(tmp_path / "nothing") == (None, [])
    for step in (1, 2, 10):
        folder = save(tmp_path / "run", step, writers(step))
        verify(folder)
        assert_content(folder, step)
        assert newest(tmp_path / "run") == (folder, [])
    assert sorted(p.name for p in folder.iterdir()) == ["MANIFEST.json", "metrics.json", "model.safetensors"]
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_the_course_of_a_run_is_what_its_last_training_left(tmp_path):
    for step in (90, 100, 200, 300):
        save(tmp_path, step, writers(step), keep=9)
    (tmp_path / "checkpoint-400.tmp").mkdir()
    (tmp_path / "checkpoint-7").mkdir()
    names = lambda: [path.name for path in course(tmp_path)]  # noqa: E731
    assert names() == ["checkpoint-90", "checkpoint-100", "checkpoint-200", "checkpoint-300"]
    for step in (50, 150):  # another run in the same folder
        save(tmp_path, step, writers(step), keep=9)
    assert names() == ["checkpoint-50", "checkpoint-150"] and course(tmp_path / "none") == []


def test_a_writer_may_put_files_beside_its_own(tmp_path):
    def write(path):
        path.write_text("a")
        path.with_name("beside.json").write_text("b")

    folder = save(tmp_path, 1, {"main.json": write})
    (folder / "beside.json").write_text("c")
    with pytest.raises(CheckpointError, match="beside.json is damaged"):
        verify(folder)


def test_what_has_its_name_is_on_the_disk(tmp_path, monkeypatch):
    """Files and folder before they are renamed, the parent after it: a computer that goes off leaves all or nothing."""
    done, calls = [], {name: getattr(os, name) for name in ("fsync", "rename", "replace")}
    for name in calls:
        monkeypatch.setattr(os, name, lambda first, *more, name=name: (
            done.append(os.fstat(first).st_ino if name == "fsync" else name), calls[name](first, *more)))
    folder = save(tmp_path, 1, writers(1))
    inode = lambda path: path.stat().st_ino  # noqa: E731
    files = [inode(folder / name) for name in ("metrics.json", "model.safetensors", MANIFEST)]
    assert done == [*files, inode(folder), "rename", inode(tmp_path)]
    done.clear()
    publish(folder, ["metrics.json"], tmp_path)
    assert done == [inode(tmp_path / "metrics.json"), "replace", inode(tmp_path)]


def test_killed_at_every_point_of_a_save(tmp_path):
    def prepare(run):
        save(run, 1, writers(1))

    for run in crash_points(tmp_path, prepare, lambda run: save(run, 2, writers(2), keep=1)):
        folder, rejected = newest(run)
        assert folder.name in ("checkpoint-1", "checkpoint-2") and rejected == []
        assert_content(folder, int(folder.name[-1]))
        assert_content(save(run, 2, writers(2), keep=1), 2)  # the next try is not in the way of the last
        assert sorted(p.name for p in run.iterdir()) == ["checkpoint-2"]


def test_killed_at_every_point_while_the_only_checkpoint_is_replaced(tmp_path):
    def prepare(run):
        save(run, 1, writers(1))

    def act(run):
        save(run, 1, writers(1) | {"again": lambda path: path.write_text("x")}, keep=1)

    for run in crash_points(tmp_path, prepare, act):
        folder, rejected = newest(run)
        assert rejected == []
        assert_content(folder, 1)
        save(run, 2, writers(2), keep=1)
        assert steps(run) == {2} and not list(run.glob("*.old")) and not list(run.glob("*.tmp"))


def test_killed_at_every_point_of_publishing(tmp_path, monkeypatch):
    names = ("model.safetensors", "metrics.json")

    def prepare(run):
        save(run, 1, writers(1))
        publish(run / "checkpoint-1", names, run)
        save(run, 2, writers(2))

    for run in crash_points(tmp_path, prepare, lambda run: publish(run / "checkpoint-2", names, run)):
        for name in names:  # each file is the old or the new one, never a part of either
            assert (run / name).read_bytes() in [(run / f"checkpoint-{s}" / name).read_bytes() for s in (1, 2)]
    assert_content(run, 2)


# Damage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.json", "MANIFEST.json"])
def test_torn_or_flipped_files_fall_back_and_are_named(tmp_path, name):
    first, second = save(tmp_path, 1, writers(1)), save(tmp_path, 2, writers(2))
    whole = (second / name).read_bytes()
    flips = [whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1:] for i in range(len(whole))]
    for damaged in [whole[:n] for n in (0, 1, len(whole) // 2, len(whole) - 1)] + flips:
        (second / name).write_bytes(damaged)
        folder, rejected = newest(tmp_path)
        assert folder == first
        assert [path for path, _ in rejected] == [second] and name in rejected[0][1]
    (second / name).unlink()
    folder, [(path, reason)] = newest(tmp_path)
    assert (folder, path) == (first, second) and f"{name} is missing" in reason


def test_all_damaged_gives_none_and_deletes_nothing(tmp_path):
    folders = [save(tmp_path, step, writers(step)) for step in (1, 2, 3)]
    for folder in folders:
        (folder / "model.safetensors").write_bytes(b"?" * 300)
    found, rejected = newest(tmp_path)
    assert found is None and [path for path, _ in rejected] == folders[::-1]
    assert all(folder.is_dir() for folder in folders)


def test_a_renamed_checkpoint_is_rejected(tmp_path):
    save(tmp_path, 1, writers(1)).rename(tmp_path / "checkpoint-7")
    assert newest(tmp_path) == (None, [(tmp_path / "checkpoint-7", "MANIFEST.json is of step 1")])


def test_a_damaged_checkpoint_is_replaced_by_its_step_done_again(tmp_path):
    save(tmp_path, 1, writers(1))
    (save(tmp_path, 2, writers(2)) / "MANIFEST.json").write_text("{")
    assert newest(tmp_path)[0].name == "checkpoint-1"
    assert newest(save(tmp_path, 2, writers(2)).parent) == (tmp_path / "checkpoint-2", [])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]


# Failing saves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos")])
def test_a_failed_write_costs_nothing_but_the_save(tmp_path, error):
    save(tmp_path, 1, writers(1))

    def fail(path):
        path.write_bytes(b"x" * 500)
        raise error

    with pytest.raises(CheckpointError) as caught:
        save(tmp_path, 2, writers(2) | {"last.pt": fail})
    free = shutil.disk_usage(tmp_path).free
    assert caught.value.path == tmp_path / "checkpoint-2" and caught.value.needed >= 800
    assert caught.value.free == pytest.approx(free, rel=0.1)
    assert all(part in str(caught.value) for part in ("checkpoint-2", "bytes needed", "bytes free", str(error)))
    assert newest(tmp_path) == (tmp_path / "checkpoint-1", []) and steps(tmp_path) == {1}
    assert not list(tmp_path.glob("*.tmp"))
    assert_content(save(tmp_path, 2, writers(2)), 2)


def test_every_system_call_may_fail(tmp_path, monkeypatch):
    """An error (not a crash) at any point: `CheckpointError` or success, and something good always stands."""
    for name in ("mkdir", "rename", "fsync"):
        for k in range(20):
            run, calls, real = tmp_path / f"{name}-{k}", 0, getattr(os, name)
            save(run, 1, writers(1))

            def fail(*args, k=k, real=real):
                nonlocal calls
                calls += 1
                if calls == k + 1:
                    raise OSError(errno.EIO, "Input/output error")
                return real(*args)

            with monkeypatch.context() as patch:
                patch.setattr(os, name, fail)
                try:
                    save(run, 2, writers(2), keep=1)
                except CheckpointError as error:
                    assert "Input/output error" in str(error)
            folder, rejected = newest(run)
            assert rejected == [] and not list(run.glob("*.tmp"))
            assert_content(folder, int(folder.name[-1]))
            if calls <= k:
                break
        assert calls, f"os.{name} is not called"


def test_a_folder_that_cannot_even_be_looked_into(tmp_path, monkeypatch):
    """As where the disk was unmounted, or belongs to somebody else: one error, never a raw `OSError`."""
    save(tmp_path, 1, writers(1))

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    for owner, name in ((Path, "glob"), (Path, "is_dir"), (Path, "is_file"), (shutil, "disk_usage"), (Path, "stat")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, refuse)
            with pytest.raises(CheckpointError, match="Permission denied"):
                save(tmp_path, 2, writers(2))
            if name == "stat":
                with pytest.raises(CheckpointError, match="Permission denied"):
                    publish(tmp_path / "checkpoint-1", ["metrics.json"], tmp_path)
    assert newest(tmp_path)[0] == tmp_path / "checkpoint-1"


def test_free_space_is_checked_before_anything_is_written(tmp_path, monkeypatch):
    save(tmp_path, 1, writers(1))
    size = sum(len((tmp_path / "checkpoint-1" / name).read_bytes()) for name in writers(1))
    started = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, int(1.2 * size) - 1))
    with pytest.raises(CheckpointError, match="too little free space") as caught:
        save(tmp_path, 2, {"a": started.append})
    assert (caught.value.needed, caught.value.free) == (int(1.2 * size), int(1.2 * size) - 1) and not started
    with pytest.raises(CheckpointError, match="too little free space"):
        save(tmp_path / "first", 1, writers(1), estimate=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, int(1.2 * size)))
    save(tmp_path, 2, writers(2))


def test_a_run_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(CheckpointError, match="checkpoint-1"):
        save(tmp_path / "run", 1, writers(1))
    assert (tmp_path / "run").read_text() == "a file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_read_only_folder(tmp_path):
    save(tmp_path, 1, writers(1))
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(CheckpointError, match="Permission denied"):
            save(tmp_path, 2, writers(2))
    finally:
        tmp_path.chmod(0o755)
    assert newest(tmp_path) == (tmp_path / "checkpoint-1", [])


LIES = [{"sequence": 1e308}, {"sequence": "z"}, {"sequence": True}, {"sequence": -1}, {"sequence": 2**53 + 1},
        {"sequence": None}, {"step": "9"}, {"step": -9}, {"step": 9.0}, {"files": []}, {"files": {"a": 1}},
        {"files": {"a": ["1", "b"]}}, {"files": {"a": [1]}}, {"files": {"a": [1, 2]}}]


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_a_manifest_that_lies_is_damaged_and_stands_in_no_saves_way(tmp_path, lie):
    folder = save(tmp_path, 9, writers(9))
    body = json.loads((folder / MANIFEST).read_text()) | lie
    (folder / MANIFEST).write_text(checkpoint._sealed(body))
    with pytest.raises(CheckpointError, match=f"{MANIFEST} is damaged"):
        verify(folder)
    for step in (1, 2):
        save(tmp_path, step, writers(step), keep=1)
    assert steps(tmp_path) == {2, 9} and newest(tmp_path)[0].name == "checkpoint-2"


# Rotation ---------------------------------------------------------------------------------------------------


def test_rotation_keeps_the_newest_and_the_best_over_random_schedules(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # order matters here, not durability
    rng, one_file = random.Random(0), {"metrics.json": lambda path: path.write_bytes(b"{}")}
    for schedule in range(200):
        run, keep = tmp_path / f"{schedule}", rng.choice((1, 2, 5))
        for old in rng.sample(range(100, 1000, 100), rng.randint(0, 3)):  # another run was here, with higher steps
            save(run, old, one_file, keep=5)
        saved, best = [], None
        for step in sorted(rng.sample(range(1, 60), rng.randint(1, 8))):
            saved.append(step)
            best = step if best is None or rng.random() < 0.2 else best
            save(run, step, one_file, keep=keep, best_step=best)
            assert set(saved[-keep:]) | {best} <= steps(run)
            assert newest(run) == (run / f"checkpoint-{step}", [])
        assert len(steps(run)) <= keep + 1
        for folder in run.iterdir():
            verify(folder)


def test_rotation_deletes_nothing_before_the_new_one_verified(tmp_path):
    for step in (1, 2):
        save(tmp_path, step, writers(step))

    def lose(path):
        path.write_bytes(b"x")
        path.with_name("model.safetensors").unlink()

    with pytest.raises(CheckpointError):
        save(tmp_path, 3, writers(3) | {"z": lose, "y": lose}, keep=1)
    assert steps(tmp_path) == {1, 2}


def test_rotation_waits_until_the_new_one_has_its_name(tmp_path, monkeypatch):
    for step in (1, 2):
        save(tmp_path, step, writers(step))
    rename = os.rename

    def refused(source, target):
        if target == tmp_path / "checkpoint-3":
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(CheckpointError, match="Input/output error"):
        save(tmp_path, 3, writers(3), keep=2)
    assert steps(tmp_path) == {1, 2}


def test_rotation_leaves_what_is_not_ours(tmp_path):
    foreign = tmp_path / "checkpoint-50"
    foreign.mkdir()
    (foreign / "weights.bin").write_bytes(b"someone's")
    (tmp_path / "checkpoint-notes").mkdir()
    for step in range(1, 5):
        save(tmp_path, step, writers(step), keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-50", "checkpoint-notes"]
    folder, [(rejected, reason)] = newest(tmp_path)
    assert folder.name == "checkpoint-4" and rejected == foreign and "MANIFEST.json is missing" in reason
    with pytest.raises(ValueError, match="got 0"):
        rotate(tmp_path, keep=0)


def test_a_text_that_does_not_fit_leaves_the_one_before(tmp_path, monkeypatch):
    def half(path, text, **how):
        path.write_bytes(text.encode()[:3])
        raise OSError(errno.ENOSPC, "no space left")
    replace_text(tmp_path / "run.json", "settings")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(Path, "write_text", half)
        replace_text(tmp_path / "run.json", "others")
    assert (tmp_path / "run.json").read_text() == "settings" and len(list(tmp_path.iterdir())) == 1
    replace_text(tmp_path / "run.json", "others")
    assert (tmp_path / "run.json").read_text() == "others"
