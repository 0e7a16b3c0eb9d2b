"""What each part of the model is worth: the full model against the model without it, same steps and seeds.

    python benchmarks/ablate.py                                  # the quick pass: 1 seed, few steps
    python benchmarks/ablate.py --steps 120 --seeds 0 1 2        # the full table

Every run is `bitgen train --config scenes` with one change, on one thread, then `bitgen evaluate` on the test split
(colour-shape pairs never seen together in training). Prints a table, mean ± half the range over seeds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import measure

VARIANTS = {
    "full": [],
    "without queue": ["--loss.queue", "0"],
    "queue by momentum": ["--loss.queue-keys", "momentum"],
    "without momentum": ["--loss.momentum", "0"],
    "without ITM": ["--loss.itm", "0"],
    "without text loss": ["--loss.text", "0"],
    "without fusion gates": ["--model.fusion-gates", "False"],
    "without memory": ["--model.memory-slots", "0"],
    "first-token pooling": ["--model.pooling", "first"],
    "ternary": ["--model.ternary", "True"],
}
COLUMNS = {"t2i_r1": "t2i R@1", "i2t_r1": "i2t R@1", "rerank_itm_t2i_r1": "t2i R@1 by ITM",
           "rerank_itm_i2t_r1": "i2t R@1 by ITM", "rerank_t2i_r1": "t2i R@1 re-ranked",
           "rerank_i2t_r1": "i2t R@1 re-ranked", "caption_attributes": "attributes", "perplexity": "perplexity",
           "perplexity_memory": "with memory"}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    parser.add_argument("--rerank", type=int, default=8, help="candidates that are read together with the query")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    options = parser.parse_args()
    where = measure.begin()
    jobs = list(product(options.seeds, options.variants))  # seed by seed, so that an early stop leaves whole seeds
    with ThreadPoolExecutor(options.jobs) as pool:
        reports = dict(zip(jobs, pool.map(lambda job: measured(*job, options), jobs)))
    print(f"{options.steps} steps, seeds {options.seeds}; gallery and chance: "
          f"{first(reports)['images']} images, R@1 {first(reports)['chance_t2i_r1']:.4f}\n")
    print(table(reports, options))
    measure.write(options.json, {"environment": where, "steps": options.steps, "reports": [
        {"seed": seed, "variant": variant, **report} for (seed, variant), report in reports.items()]})


def measured(seed: int, variant: str, options) -> dict:
    """Train and evaluate one variant; a finished one is not done again."""
    folder = options.out / f"{variant.replace(' ', '-')}-{options.steps}-{seed}"
    result = folder / "test.json"
    if not (folder / "model.safetensors").is_file():
        run("train", "--config", "scenes", "--output-dir", folder, "--seed", seed, "--optim.max-steps", options.steps,
            "--validate-every", options.steps, "--save-every", options.steps, *VARIANTS[variant])
    if not result.is_file() or not COLUMNS.keys() <= json.loads(result.read_text()).keys() | {"perplexity_memory"}:
        run("evaluate", folder, "--split", "test", "--rerank", options.rerank, "--json", result)
    print(f"{variant}, seed {seed}: done", file=sys.stderr)
    return json.loads(result.read_text())


def run(*arguments) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "bitgen", *map(str, arguments)], env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"bitgen {' '.join(map(str, arguments))} failed:\n{done.stdout[-2000:]}")


def first(reports: dict) -> dict:
    return next(iter(reports.values()))


def table(reports: dict, options) -> str:
    rows = []
    for variant in options.variants:
        cells = []
        for key in COLUMNS:
            values = [reports[seed, variant].get(key) for seed in options.seeds]
            known = [value for value in values if value is not None]
            cells.append(f"{sum(known) / len(known):.3f} ± {(max(known) - min(known)) / 2:.3f}" if known else "–")
        rows.append([variant, *cells])
    return measure.table(["variant", *COLUMNS.values()], rows)


if __name__ == "__main__":
    main()
