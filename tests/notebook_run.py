"""The run that notebooks look at where they are executed at their small size."""

from bitgen.config import load_preset
from bitgen.trainer import Trainer


def small_run(folder):
    """A run of a few steps with a small model on a few scenes, in `folder`: checkpoints, history, all that is read."""
    config = load_preset("nano", load_preset("scenes"))
    config.output_dir = str(folder)
    config.data.scenes_train, config.optim.batch_size, config.optim.max_steps = 256, 16, 12
    config.save_every, config.log_every, config.validate_every = 6, 2, 12
    config.loss.queue, config.loss.queue_start, config.optim.warmup_steps = 64, 4, 2
    trainer = Trainer(config)
    trainer.val_data = trainer.val_data.first(40)
    trainer.fit()
    return config.output_dir
