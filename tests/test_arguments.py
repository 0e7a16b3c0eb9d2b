"""Command lines: what cannot be read is one line that says what could be; files to write are tried
before the work; an interruption is no traceback."""

import pytest
from layouts import csv_file

from bitgen import cli
from bitgen.arguments import check_files
from bitgen.cli import main


@pytest.mark.parametrize("argv, told", [
    ("trian", "no command 'trian'; did you mean 'train'? `bitgen --help` lists all"),
    ("data chek x", "no command 'chek'; did you mean 'check'? `bitgen data --help` lists all"),
    ("data", "`bitgen data` needs a command: check or prepare"),
    ("hub lst a/b", "no command 'lst'; did you mean 'list'? `bitgen hub --help` lists all"),
    ("evaluate x --devic cpu", "unknown setting --devic; did you mean --device? `bitgen evaluate --help` lists all"),
    ("data check x --imageroot=y",
     "unknown setting --imageroot; did you mean --image-root? `bitgen data check --help` lists all"),
    ("index remove x y --idz z", "unknown setting --idz; did you mean --help? `bitgen index remove --help` lists all"),
    ("search x dog --treshold 1",
     "unknown setting --treshold; did you mean --threshold? `bitgen search --help` lists all"),
    ("search x dog -k 3", "unknown setting -k; did you mean --k? `bitgen search --help` lists all"),
    ("train --optim.lrr 1", "unknown setting --optim.lrr; did you mean --optim.lr? `bitgen train --help` lists all"),
    ("train --no-compile", "unknown setting --no-compile; did you mean --compile? `bitgen train --help` lists all"),
    ("evaluate x --split tset", "--split: expected one of train, val, test, got 'tset'; did you mean 'test'?"),
    ("index x --dtype=float3", "--dtype: expected one of float16, float32, got 'float3'; did you mean 'float32'?"),
    ("train --data.format parqet", "--data.format: expected one of auto, scenes, karpathy, coco, parquet, webdataset, "
                                   "hub, csv, got 'parqet'; did you mean 'parquet'?"),
    ("train --stop-on bed", "--stop-on: expected one of bad, None, got 'bed'; did you mean 'bad'?"),
    ("train --optim.lr abc", "--optim.lr: expected a number, got 'abc'\n"),
    ("train --loss.queue=1.5", "--loss.queue: expected a whole number, got '1.5'\n"),
    ("train --vision.trainable two", "--vision.trainable: expected a whole number or all or none, got 'two'\n"),
    ("app --port x", "--port: expected a whole number or None, got 'x'\n"),
    ("train --optim.lr", "--optim.lr needs a value; `bitgen train --help` lists all"),
    ("train --output-dir --seed 3", "--output-dir needs a value; `bitgen train --help` lists all"),
    ("train --compile maybe", "invalid choice 'Maybe' for argument '--compile'. Expected one of ('True', 'False'); "),
    ("train --optim.betas 0.9", "Missing value for argument '--optim.betas'. Expected 2 values; `bitgen train --help`"),
    ("train scenes", "Unrecognized options: scenes; `bitgen train --help` lists all"),
    ("evaluate", "Missing from bitgen evaluate: RUN Run folder, checkpoint folder or Hub id. (required); `bitgen "),
    ("index export", "Missing from bitgen index export: INDEX Folder of the index. (required) FILE The parquet file. "
                     "(required); `bitgen index export --help` lists all"),
    *((f"train --config{rest}", "--config needs a name: ") for rest in ("", "=", " --seed 3")),
])
def test_what_cannot_be_read_is_one_line_that_says_what_could_be(argv, told, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv.split())
    said = capsys.readouterr()
    assert end.value.code == 2 and said.err.startswith(f"bitgen: {told}") and said.err.count("\n") == 1


@pytest.mark.parametrize("argv", ["data --help", "data check --help", "hub -h", "index --help", "evaluate -h",
                                  "train --help"])
def test_help_is_asked_for(argv, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv.split())
    said = capsys.readouterr()
    assert not end.value.code and not said.err and f"usage: bitgen {argv.rpartition(' ')[0]}" in said.out


def test_every_command_is_in_the_help(capsys):
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert main([]) == 2 and capsys.readouterr().err == told
    assert told.startswith("usage: bitgen {train,evaluate,")
    assert all(f"\n  {name:<10} " in told and f"`bitgen {name} " in told for name in
               "train evaluate data pull card doctor diagnose push index search hub app".split())


def test_settings_reach_the_command_however_they_are_written(monkeypatch):
    """Behind `--` nothing is a setting; yes-or-no ones have a no."""
    from bitgen import index_commands

    asked = []
    monkeypatch.setattr(index_commands, "_change", asked.append)
    for argv in (["export", "--no-captions", "a", "b"], ["export", "--captions", "a", "b"],
                 ["remove", "a", "--", "--id"]):
        assert not main(["index", *argv])
    assert [asked[0].captions, asked[1].captions, asked[2].ids] == [False, True, ["--id"]]


@pytest.mark.parametrize("argv, busy", [
    ("data check x", "bitgen.prepare.check"), ("doctor x", "bitgen.health.read_history"),
    ("train", "bitgen.cli.settings"),
])
def test_an_interruption_is_one_line_and_status_130(argv, busy, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(busy, interrupted)
    assert main(argv.split()) == 130
    assert capsys.readouterr() == ("", "bitgen: interrupted\n")


@pytest.mark.parametrize("command, option, name, told", [
    ("data check", "sheet", "sheet.xyz", "cannot be written: expected the name of a picture, which ends in .avif, "),
    ("data check", "sheet", "sheet", "cannot be written: expected the name of a picture"),
    ("data check", "sheet", "captions.csv/sheet.png", "cannot be written: "),
    ("data check", "json", "captions.csv/report.json", "cannot be written: "),
    ("evaluate", "json", "images", "cannot be written: it is a folder; name a file"),
    ("evaluate", "picture", "worst.doc", "cannot be written: expected the name of a picture"),
    ("diagnose", "out", "captions.csv/page.html", "cannot be written: "),
])
def test_a_file_that_cannot_be_written_is_named_before_the_work(tmp_path, command, option, name, told, capsys):
    csv_file(tmp_path, count=1)
    path = tmp_path / name
    assert main([*command.split(), str(tmp_path), f"--{option}", str(path)]) == 65
    said = capsys.readouterr()
    assert said.err.startswith(f"bitgen: --{option} {path}: {told}") and said.err.count("\n") == 1 and not said.out


def test_trying_whether_a_file_can_be_written_leaves_what_is_there(tmp_path):
    (tmp_path / "old.json").write_text("as it was")
    check_files(json=str(tmp_path / "old.json"), out=str(tmp_path / "new" / "page.html"), sheet=None)
    assert (tmp_path / "old.json").read_text() == "as it was" and not list((tmp_path / "new").iterdir())


def test_an_index_goes_into_a_folder(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["index", str(tmp_path), "--checkpoint", "nowhere", "--out", str(tmp_path / "file")]) == 65
    assert capsys.readouterr().err == (f"bitgen: --out {tmp_path / 'file'}: a file; expected a folder, which is made "
                                       "where it is missing\n")


def test_arguments_by_place_have_names(capsys):
    for argv, told in (("doctor --help", "RUN"), ("index remove --help", "INDEX ID …"), ("app --help", "[RUN]")):
        with pytest.raises(SystemExit):
            main(argv.split())
        assert told in capsys.readouterr().out.splitlines()[0]


def test_a_reader_that_has_read_enough_is_no_error(monkeypatch, capfd):
    def doctor(argv):
        raise BrokenPipeError
    monkeypatch.setattr(cli, "doctor", doctor)
    assert main(["doctor", "x"]) == 141 and not capfd.readouterr().err
