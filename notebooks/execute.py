"""Runs notebooks from top to bottom in fresh kernels and keeps what they print: `python notebooks/execute.py [FILE …]`.

Without names it takes every notebook beside it. The hash of a notebook's code is kept with its outputs, so that a test
can tell when one was changed without the other; times and the machine's names are left out, so that the same code
gives the same file. A notebook that prints to stderr, such as a warning, is not written.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).resolve().parent
TIMEOUT = 900  # seconds a cell


def code_hash(notebook: nbformat.NotebookNode) -> str:
    """sha256 of the code cells, in their order."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()


def executed(notebook: nbformat.NotebookNode, folder: Path = HERE) -> nbformat.NotebookNode:
    """`notebook` with fresh outputs, run in `folder`. Raises `nbclient.exceptions.CellExecutionError`."""
    NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", record_timing=False,
                   resources={"metadata": {"path": str(folder)}}).execute()
    notebook.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"}, "bitgen": {"code": code_hash(notebook)}})
    return notebook


def shrink(notebook: nbformat.NotebookNode) -> None:
    """Pictures in 128 colours: a third of the bytes, and no difference to the eye."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                png = io.BytesIO()
                with Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))) as picture:
                    picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(png, "PNG", optimize=True)
                output.data["image/png"] = base64.b64encode(png.getvalue()).decode()


def complaints(notebook: nbformat.NotebookNode) -> list[str]:
    """What the cells wrote to stderr."""
    return [output.text for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
            if output.output_type == "stream" and output.name == "stderr"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path)
    failed = 0
    for path in parser.parse_args().notebooks or sorted(HERE.glob("*.ipynb")):
        notebook = executed(nbformat.read(path, as_version=4))
        if said := complaints(notebook):
            print(f"{path.name}: not written, it printed to stderr:\n{''.join(said)}", file=sys.stderr)
            failed = 1
            continue
        shrink(notebook)
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} KB")
    return failed


if __name__ == "__main__":
    sys.exit(main())
