"""Runs notebooks from top to bottom in fresh kernels and keeps what they print: `python notebooks/execute.py [FILE …]`.

Without names it takes every notebook beside it. The hash of a notebook's code, and of the modules that it names, is
kept with its outputs, so that a test can tell when one was changed without the other; times, the machine's names and
what only lives as long as the kernel (progress bars, frames) are left out, so that the same code gives the same file. A
notebook that warns is not written.
What is pushed goes to a Hub on this computer, unless BITGEN_NOTEBOOK_HUB names a repository of yours.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).resolve().parent
BITGEN = HERE.parent / "bitgen"
START, TIMEOUT = 300, 900  # seconds until a kernel answers, and for a cell
WAITING = re.compile(r"^.* takes up to a minute …\n", re.MULTILINE)  # said only where the cache does not have it yet
LIVE = re.compile(r"application/vnd\.jupyter\.widget-view\+json|<iframe")


def code_hash(notebook: nbformat.NotebookNode) -> str:
    """sha256 of the code cells, in their order, and of what they stand on: the modules of bitgen that they name, less
    comments and docstrings, and the preset."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    preset = (BITGEN / "presets" / "scenes.yaml").read_text(encoding="utf-8")
    return hashlib.sha256("\0".join([*cells, *map(bare, named(cells)), preset]).encode()).hexdigest()


def named(cells: list[str]) -> list[Path]:
    """Modules of bitgen that the cells import, by name."""
    code = "\n".join(line for cell in cells for line in cell.splitlines() if not line.startswith(("%", "!")))
    found = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in found if node.module == "bitgen" for alias in node.names}
    names |= {node.module.removeprefix("bitgen.") for node in found if node.module.startswith("bitgen.")}
    return sorted(path for path in (BITGEN / f"{name}.py" for name in names) if path.is_file())


def bare(path: Path) -> str:
    """The code of a module, whatever is said about it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            body[:] = [line for line in body
                       if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))]
    return ast.dump(tree)


def executed(notebook: nbformat.NotebookNode, folder: Path = HERE) -> nbformat.NotebookNode:
    """`notebook` with fresh outputs, run in `folder`. Raises `nbclient.exceptions.CellExecutionError`."""
    NotebookClient(notebook, timeout=TIMEOUT, startup_timeout=START, kernel_name="python3", record_timing=False,
                   resources={"metadata": {"path": str(folder)}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = joined(output for output in cell.outputs if not LIVE.search(str(output.get("data", ""))))
    notebook.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"}, "bitgen": {"code": code_hash(notebook)}})
    return notebook


def joined(outputs: Iterator[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The outputs with what one stream wrote in several pieces, as the clock had it, in one, less words of patience."""
    kept: list[nbformat.NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream":
            output.text = WAITING.sub("", output.text)
            if not output.text:
                continue
        if kept and output.output_type == "stream" and (kept[-1].output_type, kept[-1].get("name")) == (
                "stream", output.name):
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def shrink(notebook: nbformat.NotebookNode) -> None:
    """Pictures in 128 colours: a third of the bytes, and no difference to the eye.

    The palette begins with colours that cover all there are, so that a rare one is not lost, and moves to the means of
    what it stands for, so that a background keeps its own.
    """
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                png = io.BytesIO()
                with Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))) as picture:
                    picture.convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE, kmeans=10, dither=Image.Dither.NONE
                                                    ).save(png, "PNG", optimize=True)
                output.data["image/png"] = base64.b64encode(png.getvalue()).decode()


def complaints(notebook: nbformat.NotebookNode) -> list[str]:
    """What the cells wrote to stderr, and warnings that reached the reader in another way."""
    return [output.text for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
            if output.output_type == "stream" and (output.name == "stderr" or re.search(r"Warning: ", output.text))]


@contextmanager
def a_hub() -> Iterator[None]:
    """The Hub of the tests in the environment, where the user has named no repository."""
    if "BITGEN_NOTEBOOK_HUB" in os.environ:
        yield
        return
    sys.path.insert(0, str(HERE.parent / "tests"))
    from hub_server import HubServer

    with HubServer() as server, tempfile.TemporaryDirectory() as home:
        os.environ |= server.env(home) | {"BITGEN_NOTEBOOK_HUB": "ann/scenes"}
        yield


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path)
    with a_hub():
        return max([refreshed(path) for path in parser.parse_args().notebooks or sorted(HERE.glob("*.ipynb"))])


def refreshed(path: Path) -> int:
    """Runs one notebook and writes it; 1 where it is not written."""
    notebook = executed(nbformat.read(path, as_version=4))
    if said := complaints(notebook):
        print(f"{path.name}: not written, it warns:\n{''.join(said)}", file=sys.stderr)
        return 1
    shrink(notebook)
    nbformat.write(notebook, path)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
