"""The tests run offline, on the CPU, with one thread a process, and leave nothing in the user's home."""

import atexit
import os
import shutil
import tempfile

import pytest

# Before anything imports torch or huggingface_hub: both read the environment once.
HOME = tempfile.mkdtemp(prefix="bitgen-tests-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ.update(
    HOME=HOME, XDG_CACHE_HOME=f"{HOME}/.cache", HF_HOME=f"{HOME}/.cache/huggingface", HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1", CUDA_VISIBLE_DEVICES="", TOKENIZERS_PARALLELISM="false", MPLBACKEND="Agg",
    GRADIO_TEMP_DIR=f"{HOME}/gradio", GRADIO_ANALYTICS_ENABLED="False",
)
os.environ.pop("HF_TOKEN", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_terminal_summary(terminalreporter):
    """Says it loudly where the app was not seen in a browser."""
    skipped = terminalreporter.stats.get("skipped", [])
    for reason in sorted({report.longrepr[2] for report in skipped if "NO BROWSER" in str(report.longrepr)}):
        terminalreporter.section(reason.removeprefix("Skipped: "), sep="!", red=True, bold=True)


TOWER = {"model_type": "dinov2", "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "mlp_ratio": 2}
WORDS = 60  # entries of the tiny vocabulary; 0 begins, ends and pads


def tiny_model(seed=0, gates=0.0, **changes):
    """A model 32 wide over 16 patches of 32-pixel images, in evaluation mode; `gates` opens the fusion."""
    import torch

    from bitgen.config import ModelConfig, VisionConfig
    from bitgen.model import BitGen

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "text_layers": 2, "decoder_layers": 2, "num_heads": 4, "intermediate_size": 64,
             "max_tokens": 16, "vocab_size": WORDS, "memory_slots": 8}
    model = BitGen(ModelConfig(**{**sizes, **changes}), VisionConfig(image_size=32, tower=TOWER)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_gate"):
                parameter.fill_(gates)
    return model


def tiny_batch(images=6, captions=2, length=10, seed=0, full=False):
    """Normalised noise and random words; captions of different lengths unless `full`."""
    import torch

    from bitgen.data import Batch

    generator = torch.Generator().manual_seed(seed)
    count = images * captions
    ids = torch.randint(1, WORDS, (count, length), generator=generator)
    lengths = torch.randint(4, length + 1, (count,), generator=generator)
    lengths = torch.full_like(lengths, length) if full else lengths
    mask = torch.arange(length)[None] < lengths[:, None]
    ids[:, 0] = 0
    ids[torch.arange(count), lengths - 1] = 0
    return Batch(pixel_values=torch.randn(images, 3, 32, 32, generator=generator), input_ids=ids * mask,
                 attention_mask=mask, image_index=torch.arange(images).repeat_interleave(captions),
                 image_ids=1000 * (seed + 1) + torch.arange(images),
                 caption_ids=1_000_000 * (seed + 1) + torch.arange(count))


def same_weights(model, other):
    """Whether two models hold the same numbers, to the bit."""
    import torch

    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub for this test (see hub_server.py), used by clients in this process and in those that it starts."""
    from hub_server import HubServer
    from huggingface_hub import close_session, constants, set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    with HubServer() as server:
        for name, value in server.env(tmp_path / "hub-home").items():
            monkeypatch.setenv(name, value)
        for name, value in {"ENDPOINT": server.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True,
                            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
                            "HF_HUB_CACHE": str(tmp_path / "hub-home" / "hub")}.items():
            monkeypatch.setattr(constants, name, value)
        close_session()
        yield server
        set_client_factory(default_client_factory)  # closes connections, forgets time limits


@pytest.fixture
def quick_runs():
    """Runs of this test draw nothing and validate on few scenes."""
    from small_runs import quick

    with quick():
        yield


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A finished run of six steps with two checkpoints (see small_runs.py); not to be changed."""
    from small_runs import config, quick

    from bitgen.trainer import Trainer

    folder = tmp_path_factory.mktemp("run")
    with quick():
        Trainer(config(folder)).fit()
    return folder


@pytest.fixture(scope="module")
def painter():
    """An encoder that sees colours (see painted.py)."""
    from painted import Painter

    return Painter()


@pytest.fixture(scope="module")
def built(tmp_path_factory, painter):
    """The folder of an index of all pairs of colours; not to be changed."""
    from painted import gallery

    from bitgen.index import Index

    return Index.build(tmp_path_factory.mktemp("built") / "index", gallery(), painter, batch_size=10).folder


@pytest.fixture
def index(tmp_path, built):
    """A copy of `built`, opened."""
    from bitgen.index import Index

    return Index.open(shutil.copytree(built, tmp_path / "index"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder for the app: a run with a checkpoint of other weights in `runs/first`, and 24 scenes in `gallery`."""
    from app_runs import write_gallery, write_run

    place = tmp_path_factory.mktemp("place")
    write_run(place / "runs" / "first")
    write_run(place / "runs" / "first" / "checkpoint-7", seed=5)
    write_gallery(place / "gallery")
    return place


@pytest.fixture(scope="module")
def bench(place):
    """The app's bench on that run and gallery."""
    from app.bench import Bench

    return Bench(str(place / "runs/first"), str(place / "gallery"), place / "runs")


@pytest.fixture(scope="module")
def view(bench):
    """What a visitor looks at who has just come."""
    return bench.open(bench.start)
