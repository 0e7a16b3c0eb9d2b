"""Words of captions, and which of them tell pictures apart. No gradio."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence


def words(texts: Sequence[str]) -> list[set[str]]:
    """The words of each text, in lower case."""
    return [set(re.findall(r"\w+", text.lower())) for text in texts]


def telling(said: Sequence[set[str]], seldom: float, often: float) -> list[str]:
    """Words that a share of `seldom` to `often` of the texts have, the most frequent first."""
    counts = Counter(word for each in said for word in each)
    return sorted((word for word, count in counts.items() if seldom * len(said) <= count <= often * len(said)),
                  key=lambda word: (-counts[word], word))
