"""What the tests of pushing share: checkpoints of random bytes, who publishes them, what has to be there in the end."""

import json
import random
import time
from dataclasses import replace

from bitgen import checkpoint
from bitgen.config import HubConfig
from bitgen.outbox import ROOT, STATE, Outbox
from bitgen.push import Publisher
from bitgen.repository import Limits
from bitgen.upload import Job

REPO = "org/name"
PATIENT = Limits(connect=30, read=30, deadline=60, first_wait=0.01, longest_wait=0.02, commits_per_hour=100)
HASTY = replace(PATIENT, read=0.3)  # for servers that never answer
HELD = ("model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json", "metrics.json", "run.json")


def save(run, step, size=2000, keep=5):
    """A checkpoint of random bytes, as the trainer lays it out."""
    noise = random.Random(step)
    writers = {name: lambda path: path.write_bytes(noise.randbytes(size)) for name in HELD}
    return checkpoint.save(run, step, writers | {f"checkpoint-{step}.pt": writers["run.json"]}, keep=keep)


def entry(run, step):
    """A checkpoint in the outbox of a run, as a job for one try."""
    save(run, step)
    outbox = Outbox(run, REPO)
    folder = outbox.add(step)
    outbox.close()
    return Job(REPO, folder=str(folder), limits=PATIENT)


def publisher(run, told=None, limits=PATIENT, **settings):
    return Publisher(run, HubConfig(repo=REPO, **settings), limits, tell=(told if told is not None else []).append)


def whole(files):
    """Steps of the checkpoints among `files` (path -> bytes), each checked to be all there, as is the root."""
    import hashlib

    steps = sorted({int(path.split("/")[0].removeprefix("checkpoint-")) for path in files if "/" in path})
    for step in steps:
        below = f"checkpoint-{step}/"
        listed = json.loads(files[below + "MANIFEST.json"])["files"]
        assert {path.removeprefix(below) for path in files if path.startswith(below)} == {*listed, "MANIFEST.json"}
        for name, (size, sha256) in listed.items():
            assert len(files[below + name]) == size and hashlib.sha256(files[below + name]).hexdigest() == sha256
    if steps:
        assert any(all(files[name] == files[f"checkpoint-{step}/{name}"] for name in ROOT) for step in steps)
    return steps


def record(run, hub, repo=REPO):
    """What a run remembers of a repository."""
    return json.loads((run / STATE).read_text())[f"{hub.url}/{repo}"]


def wait_for(condition, seconds=60):
    """A hang guard."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)
