"""Every notebook at the size of the tests, several times over: does it print the same, does it warn, how long is it?

    python benchmarks/notebooks.py                # three times
    python benchmarks/notebooks.py --times 1

Each pass of each notebook has a kernel of its own and folders of its own; all look at one small run that is trained
first. Prints a table: the seconds of each pass, whether what is printed and what is drawn is the same in all of them,
and what went wrong: warnings, errors, kernels that died. The exit status is 1 where anything did, or a pass differs.
"""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import measure
import nbformat
from nbclient.exceptions import CellExecutionError, DeadKernelError

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from hub_server import HubServer  # noqa: E402
from notebook_run import small_run  # noqa: E402

EXECUTE = SimpleNamespace(**runpy.run_path(str(ROOT / "notebooks" / "execute.py")))


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args()
    where = measure.begin(None, "seconds")
    with tempfile.TemporaryDirectory() as place:
        run = small_run(Path(place) / "run")
        passes = [{path.stem: one_pass(path, run) for path in sorted(EXECUTE.HERE.glob("*.ipynb"))}
                  for _ in range(options.times)]
    bad, rows = False, []
    for name in passes[0]:
        seconds, printed, drawn, wrong = zip(*(each[name] for each in passes))
        alike = [all(each == part[0] for each in part) for part in (printed, drawn)]
        said = [line for lines in wrong for line in lines]
        bad |= bool(said) or not all(alike)
        rows.append([name, *seconds, *("the same" if same else "DIFFERS" for same in alike),
                     "; ".join(said) or "nothing"])
    rows.append(["together", *(sum(each[0] for each in one.values()) for one in passes), "", "", ""])
    columns = ["notebook", *(f"pass {i}, s" for i in range(1, options.times + 1)), "prints", "draws", "went wrong"]
    print(measure.table(columns, rows))
    measure.write(options.json, {"environment": where, "columns": columns, "rows": rows})
    return int(bad)


def one_pass(path: Path, run: str) -> tuple[float, list[str], list[str], list[str]]:
    """Seconds, texts, pictures, and what went wrong."""
    notebook, wrong, begun = nbformat.read(path, as_version=4), [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, HubServer() as hub:
        os.environ |= hub.env(Path(folder) / "home") | {
            "BITGEN_NOTEBOOK_SIZE": "small", "BITGEN_NOTEBOOK_RUNS": folder, "BITGEN_NOTEBOOK_RUN": run,
            "BITGEN_NOTEBOOK_HUB": "ann/scenes"}
        try:
            notebook = EXECUTE.executed(notebook)
            wrong = EXECUTE.complaints(notebook)
        except (CellExecutionError, DeadKernelError) as error:
            wrong = [f"{type(error).__name__}: {error}"]
    seconds = time.perf_counter() - begun
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    texts = [(output.get("text", "") + output.get("data", {}).get("text/plain", "")).replace(folder, "…")
             for output in outputs]
    return seconds, texts, [output.get("data", {}).get("image/png", "") for output in outputs], wrong


if __name__ == "__main__":
    sys.exit(main())
