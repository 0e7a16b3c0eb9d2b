"""The notebooks: what they conclude holds in a fresh kernel, and what is committed came from the committed code.

All of them share one tiny run, so that none trains it anew.
"""

import re
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from hub_server import HubServer
from notebook_run import small_run

FOLDER = Path(__file__).parent.parent / "notebooks"
EXECUTE = SimpleNamespace(**runpy.run_path(str(FOLDER / "execute.py")))
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
BYTES, LINES = 400_000, 15  # of a notebook, of a cell

# What must hold after the last cell, whatever the run: asserted in the notebook's own kernel.
CONCLUSIONS = {
    "01_data": """
        train_, val_ = (report["splits"][split] for split in ("train", "val"))
        assert set(train_["unreadable"]) == {"05.png", "06.png"} and train_["without_captions"] == ["07.png"]
        assert train_["duplicate_images"] == [["03.png", "03-copy.png"]]
        assert report["in_two_splits"] == [["train: 00.png", "val: holiday.png"]]
        assert not any(part[kind] for part in mended["splits"].values()
                       for kind in ("unreadable", "without_captions", "duplicate_images"))
        assert mended["in_two_splits"] == [] and same
        assert (tables["Training"] == 0).sum() == len(held) == 8 and set(counts) == {1}
        assert (tables["Test"][tables["Training"] == 0] > 0).all()""",
    "02_one_batch": """
        for name, value in by_hand.items(): assert abs(value - float(losses[name])) < 1e-3, name
        assert abs(float(itc) - itc_by_hand) < 1e-4 and abs(float(itm) - itm_by_hand) < 1e-4
        assert abs(float(kl) - float(kl_by_hand)) < 1e-4 and abs(float(loss) - float(text_by_hand)) < 1e-4
        assert abs(float(fresh["itc"]) - guess["itc"]) < 1 and abs(float(fresh["text"]) - guess["text"]) < 1""",
    "03_training": """
        import json
        from urllib.request import urlopen
        assert same and rows[0] == rows[1] and len(history) == len(resumed)
        assert "vision tower" in bad["frozen"] and "vision tower" not in bad["rate"] + bad["shuffled"]
        assert "gradient" in bad["rate"] and ill["frozen"][-1]["step"] < ILL
        shown = json.loads(urlopen(url + "data/runs").read())
        assert "healthy/tensorboard" in shown, shown""",
    "04_diagnostics": """
        assert table["decoder"]["itc"] == 0 and table["fusion"]["itc"] == 0 and table["decoder"]["text"] > 0
        assert all(row["total"] > 0 for row in table.values())
        assert used["slots"] == model.memory.slots and 1 <= used["perplexity"] <= used["slots"] * 1.001
        assert ratios and all(0 < ratio < 1 for row in ratios.values() for ratio in row.values())
        assert scores["this model"].mean() > scores["shuffled labels"].mean()
        assert abs(scores["shuffled labels"].mean() - 0.5) < 0.15""",
    "05_retrieval": """
        assert abs(collapsed["t2i_r1"] - collapsed["chance_t2i_r1"]) < 1e-9
        assert report["t2i_r1_low"] <= report["t2i_r1"] <= report["t2i_r1_high"]
        sizes = sorted(by_size)
        assert all(by_size[a] >= by_size[b] for a, b in zip(sizes, sizes[1:]))
        assert least <= difference.mean() <= most and len(seen.words) == len(seen.maps)
        assert all((way.ranks >= 1).all() and (way.ranks <= len(images)).all() for way in ways.values())""",
    "06_memory": """
        assert all(error < 1e-3 for error in errors.values())
        assert share["image and words"] > share["never written"]
        assert found["written"] > found["forgotten"]
        assert (unsure.diff(dim=0) <= 1e-5).all() and (readings.diff(dim=0) <= 1e-5).all()
        assert held["pair"][0] >= held["pair"][-1] > 1 / counts[-1]
        assert len(score) == 3 and all(value > 1 for value in score.values())""",
    "07_hub_and_card": """
        assert equal and same and found.name == f"checkpoint-{HALF}" and len(rejected) == 1
        assert "hidden_size must be at most" in refused["stranger"]
        assert "is a pickle and is not opened" in refused["pickle"]
        assert {"Results", "Cost", "Limits"} <= parts.keys()""",
}

# Of the last notebook, with a Hub and without.
WITH_A_HUB = """
        assert status.complete and status.landed == HALF and source == HUB
        assert {line.split()[0] for line in held} >= {f"checkpoint-{HALF}", f"checkpoint-{STEPS}"}"""
ALONE = """HUB = None
for name in ("killed", "elsewhere"): shutil.rmtree(WORK / name)"""
WITHOUT = """
        assert status is None and {f"run/checkpoint-{STEPS}", f"killed/checkpoint-{HALF}"} < set(held)"""


@pytest.fixture
def server():
    with HubServer() as hub:
        yield hub


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("notebooks") / "run")


def claims(text):
    """The cell that asserts them in the notebook's own kernel."""
    return nbformat.v4.new_code_cell("\n".join(line.removeprefix(" " * 8) for line in text.splitlines()))


@pytest.mark.timeout(1800)  # a guard against hanging, not a measurement
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_concludes_what_it_says(path, request, tmp_path, monkeypatch):
    monkeypatch.setenv("BITGEN_NOTEBOOK_SIZE", "small")
    monkeypatch.setenv("BITGEN_NOTEBOOK_RUNS", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    if "BITGEN_NOTEBOOK_RUN\"" in "".join(cell.source for cell in notebook.cells):
        monkeypatch.setenv("BITGEN_NOTEBOOK_RUN", request.getfixturevalue("run"))
    cells = [*notebook.cells, claims(CONCLUSIONS[path.stem])]
    if "BITGEN_NOTEBOOK_HUB" in "".join(cell.source for cell in notebook.cells):
        monkeypatch.setenv("BITGEN_NOTEBOOK_HUB", "ann/scenes")
        for name, value in request.getfixturevalue("server").env(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        # Once more, in the same kernel, for who has no Hub: what comes after the run and asks for one.
        asks = [cell.source for cell in cells if cell.cell_type == "code" and re.search(r"\bHUB\b", cell.source)][1:]
        again = [nbformat.v4.new_code_cell(source) for source in (ALONE, *asks)]
        cells += [claims(WITH_A_HUB), *again, claims(CONCLUSIONS[path.stem] + WITHOUT)]
    notebook.cells = cells
    assert EXECUTE.complaints(EXECUTE.executed(notebook)) == []
    if path.stem == "07_hub_and_card":
        said = "".join(output.get("text", "") for cell in cells if cell.cell_type == "code" for output in cell.outputs)
        assert said.count("no Hub is named") == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_come_from_the_committed_code(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.bitgen.code == EXECUTE.code_hash(notebook), "the code was changed: run `make notebooks`"
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert path.stat().st_size <= BYTES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_names_no_folder_of_the_machine_it_ran_on(path):
    notebook = nbformat.read(path, as_version=4)
    printed = [output.get("text", "") + output.get("data", {}).get("text/plain", "")
               for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not re.search(r"(^|[\s'\"(])/(tmp|home|root|work|usr|var)/", "\n".join(printed))
    assert set(notebook.metadata) == {"kernelspec", "language_info", "bitgen"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_short_define_nothing_and_pictures_are_explained(path):
    cells = nbformat.read(path, as_version=4).cells
    for place, cell in enumerate(cells):
        if cell.cell_type != "code":
            continue
        assert len(cell.source.splitlines()) <= LINES, cell.source
        assert not re.search(r"^\s*(def|class) ", cell.source, re.M), "what is worth a name belongs in the library"
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            assert cells[place + 1].cell_type == "markdown" and "*What one sees" in cells[place + 1].source
    assert cells[0].source.startswith("# ") and "## Exercise" in cells[-1].source


def test_a_cell_that_fails_or_warns_is_noticed(tmp_path):
    from nbclient.exceptions import CellExecutionError

    warns = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import warnings\nwarnings.warn('loud')")])
    assert "loud" in "".join(EXECUTE.complaints(EXECUTE.executed(warns, tmp_path)))
    fails = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 > 2")])
    with pytest.raises(CellExecutionError):
        EXECUTE.executed(fails, tmp_path)


def test_words_of_patience_are_left_out():
    """They come once and then from the cache no more, so the same code would give two files."""
    said = [("stdout", "UMAP of 720 points; the first one in a session takes up to a minute …\n"), ("stdout", "kept\n"),
            ("stdout", "it takes up to a minute …\nkept too\n"), ("stderr", "kept, and a complaint\n")]
    outputs = EXECUTE.joined(nbformat.v4.new_output("stream", name=name, text=text) for name, text in said)
    assert [output.text for output in outputs] == ["kept\nkept too\n", "kept, and a complaint\n"]


def test_every_notebook_has_conclusions():
    assert {path.stem for path in NOTEBOOKS} == set(CONCLUSIONS)


def test_pictures_keep_frequent_and_rare_colours():
    """Light grounds, a colour bar, dots of a colour that nothing else has, and noise that asks for every colour."""
    import base64
    import io

    import numpy as np
    from PIL import Image

    picture = np.full((200, 300, 3), (240, 222, 190), np.uint8)                     # the beige of `scenes`
    picture[:100, 150:] = (200, 238, 214)                                           # and its mint
    picture[110:190, 10:265] = np.stack([np.arange(255), np.arange(255) // 2 + 40, 255 - np.arange(255)], -1)
    picture[150:, 265:] = np.random.default_rng(0).integers(0, 256, (50, 35, 3))      # more than any palette holds
    picture[20:24, 20:24] = (60, 0, 90)
    png = io.BytesIO()
    Image.fromarray(picture).save(png, "PNG")
    cell = nbformat.v4.new_code_cell("", outputs=[nbformat.v4.new_output(
        "display_data", {"image/png": base64.b64encode(png.getvalue()).decode()})])
    EXECUTE.shrink(nbformat.v4.new_notebook(cells=[cell]))
    shrunk = base64.b64decode(cell.outputs[0].data["image/png"])
    with Image.open(io.BytesIO(shrunk)) as found:
        assert found.mode == "P"
        error = np.abs(np.asarray(found.convert("RGB"), int) - picture)
    assert error[:100].max() <= 4 and error[:, :265].max() <= 24


def test_a_module_that_a_notebook_names_is_part_of_its_code_and_what_is_said_about_it_is_not(tmp_path, monkeypatch):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(
        "%matplotlib inline\nimport bitgen\nfrom bitgen import figures\nfrom bitgen.losses import text_loss")])
    assert [path.stem for path in EXECUTE.named([notebook.cells[0].source])] == ["figures", "losses"]
    copied = shutil.copytree(EXECUTE.BITGEN, tmp_path / "bitgen")
    monkeypatch.setitem(EXECUTE.code_hash.__globals__, "BITGEN", copied)
    before, losses = EXECUTE.code_hash(notebook), tmp_path / "bitgen" / "losses.py"
    code = losses.read_text(encoding="utf-8")
    losses.write_text(code.replace('"""', '"""Well: ', 1) + "# a comment\n", encoding="utf-8")
    (tmp_path / "bitgen" / "app.py").write_text("elsewhere = 1\n", encoding="utf-8")
    assert EXECUTE.code_hash(notebook) == before
    losses.write_text(code + "more = 1\n", encoding="utf-8")
    assert EXECUTE.code_hash(notebook) != before
