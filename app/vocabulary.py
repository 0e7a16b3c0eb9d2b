"""Words of captions, and which of them tell pictures apart. No gradio."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

STOP = frozenset("""a about all also an and another are as at be by can for from has have he her him his i in into is it
its of off on one onto or other out some someone that the their them there they this through to toward towards up was
were what where which while who with you""".split())
"""English words that say of hardly any picture what is in it."""


def words(texts: Sequence[str]) -> list[set[str]]:
    """The words of each text, in lower case."""
    return [set(re.findall(r"\w+", text.lower())) for text in texts]


def telling(said: Sequence[set[str]], seldom: float, often: float) -> list[str]:
    """Words that a share of `seldom` to `often` of the texts have and that say something, the most frequent first."""
    counts = Counter(word for each in said for word in each)
    return sorted((word for word, count in counts.items()
                   if seldom * len(said) <= count <= often * len(said) and word not in STOP),
                  key=lambda word: (-counts[word], word))


def apart(said: Sequence[set[str]], offered: Sequence[str], count: int) -> list[str]:
    """At most `count` of the words offered, such that many texts have exactly one of them; chosen one by one."""
    has = {word: np.array([word in each for each in said]) for word in offered}
    chosen, held = [], np.zeros(len(said), dtype=int)
    while has and len(chosen) < count:
        best = max(has, key=lambda word: ((held + has[word]) == 1).sum())  # the first of equals
        if ((held + has[best]) == 1).sum() <= (held == 1).sum():
            break
        held += has.pop(best)
        chosen.append(best)
    return chosen
