"""BitGen: train a tiny vision-language model, look inside it, search with it, carry it to a small device.

    model, processor = bitgen.load("runs/scenes")
    model.encode_text(**processor(text=["a red ring above a blue square"]))       # (1, D), unit length
"""

from importlib import import_module

__version__ = "0.1.0"

# Public name -> module, imported when first used, so that `import bitgen` costs nothing.
_WHERE = {"BitGen": "model", "Config": "config", "Processor": "processing", "Tokenizer": "tokenizer",
          "Trainer": "trainer", "load": "hub", "load_preset": "config",
          "open_data": "data", "recall_at_k": "retrieval"}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module 'bitgen' has no attribute {name!r}")
    found = getattr(import_module(f"bitgen.{_WHERE[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
