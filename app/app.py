"""The entry of a Hugging Face Space: this folder is the Space's repository, with `bitgen/` beside this file.

Space variables: BITGEN_RUN, a Hub id such as ORG/NAME (by default the visitor chooses); BITGEN_GALLERY, what is
searched (by default the generated scenes).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # `app` is this folder, `bitgen` lies in it

from app.main import build_app, serving  # noqa: E402

demo = build_app(os.environ.get("BITGEN_RUN"), os.environ.get("BITGEN_GALLERY"))

if __name__ == "__main__":
    demo.launch(**serving(), server_name=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"))
