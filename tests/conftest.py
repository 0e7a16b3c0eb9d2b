"""The tests run offline, on the CPU, with two threads at most, and leave nothing in the user's home."""

import atexit
import os
import shutil
import tempfile

# Before anything imports torch or huggingface_hub: both read the environment once.
HOME = tempfile.mkdtemp(prefix="bitgen-tests-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ.update(
    HOME=HOME, XDG_CACHE_HOME=f"{HOME}/.cache", HF_HOME=f"{HOME}/.cache/huggingface", HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1", CUDA_VISIBLE_DEVICES="", TOKENIZERS_PARALLELISM="false", MPLBACKEND="Agg",
)
os.environ.pop("HF_TOKEN", None)
os.environ.setdefault("OMP_NUM_THREADS", "2")
