"""How long training takes until words find images: seconds to a given recall on images that were held out.

    python benchmarks/time_to_recall.py                                     # scenes, t2i R@1 of 0.60
    python benchmarks/time_to_recall.py --config flickr8k --data photos/ --recall 0.10 --every 46

Trains with the preset's settings and validates every few steps; what validation takes does not count, starting up and
rendering neither. CPU seconds are those of all threads, and hold on a busy computer; seconds by the clock do not.
"""

from __future__ import annotations

import tempfile
import time

import measure
from measure import DEVICE

from bitgen.config import load_preset
from bitgen.trainer import Trainer


class Timed(Trainer):
    """A run that ends where recall on the validation images reaches `target`."""

    def __init__(self, config, target: float):
        super().__init__(config)
        self.target, self.aside, self.rows = target, [0.0, 0.0], []

    def fit(self) -> dict[str, float]:
        self.begun = clocks()
        return super().fit()

    def save(self, **_) -> None:
        """Nothing is kept of it, and saving takes no time."""

    def _validated(self) -> bool:
        before = clocks()
        spent = [now - begun - aside for now, begun, aside in zip(before, self.begun, self.aside)]
        super()._validated()
        recall = float(self.validation["t2i_r1"])
        images = self.step * self.config.optim.accumulation * self.config.optim.batch_size
        self.rows.append([self.step, images, recall, *spent])
        self.aside = [aside + now - then for aside, now, then in zip(self.aside, clocks(), before)]
        print(f"step {self.step}: t2i R@1 {recall:.3f} after {spent[0]:.0f} CPU s, {spent[1]:.0f} s", flush=True)
        return recall >= self.target


def clocks() -> list[float]:
    """CPU seconds of this process, seconds by the clock."""
    return [time.process_time(), time.perf_counter()]


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--config", default="scenes", help="preset, or a YAML file")
    parser.add_argument("--data", help="data.root, where it is not the preset's")
    parser.add_argument("--pretrained", help="vision.pretrained, where it is not the preset's")
    parser.add_argument("--recall", type=float, default=0.60, help="t2i R@1 on validation images to be reached")
    parser.add_argument("--every", type=int, default=20, help="steps between two looks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    where = measure.begin(options.threads)
    config = load_preset(options.config)
    config.seed, config.validate_every = options.seed, options.every
    config.save_every, config.optim.patience = 10**9, 10**9
    config.data.root, config.vision.pretrained = (options.data or config.data.root,
                                                  options.pretrained or config.vision.pretrained)
    with tempfile.TemporaryDirectory() as folder:
        config.output_dir = folder
        run = Timed(config, options.recall)
        run.fit()
    print("\n" + measure.table(["step", "images", "t2i R@1", "CPU s", "s by the clock"], run.rows))
    reached = run.rows[-1][2] >= options.recall
    after = f"after {run.rows[-1][3]:.0f} CPU seconds, {run.rows[-1][4]:.0f} by the clock"
    print(f"{options.config} on {DEVICE}: t2i R@1 {options.recall} {after if reached else 'was not reached'}")
    measure.write(options.json, {"environment": where, "rows": run.rows, "reached": reached})


if __name__ == "__main__":
    main()
