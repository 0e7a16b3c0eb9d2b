"""The language of `scenes`: its words, how a scene is put into a caption, and how a caption is read back.

A scene is a plain dict, always in canonical direction (`relation` is `left of` or `above`, and holds from
`objects[0]` to `objects[1]`):

    {"objects": [{"shape", "colour", "size", "texture", ...}, ...], "relation": str, "background": str}

Captions speak of it both ways ("A left of B", "B to the right of A"); `parse` undoes that.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import permutations

# Canonical name -> the words that say it; the first is the name itself. Every word belongs to one entry only.
COLOURS = {"red": ("red",), "orange": ("orange",), "yellow": ("yellow",), "green": ("green",),
           "cyan": ("cyan",), "blue": ("blue",), "purple": ("purple", "violet"), "pink": ("pink",)}
SHAPES = {"circle": ("circle", "disc"), "square": ("square", "box"), "triangle": ("triangle",), "star": ("star",),
          "cross": ("cross",), "ring": ("ring", "hoop"), "heart": ("heart",), "diamond": ("diamond",)}
SIZES = {"small": ("small", "little"), "large": ("large", "big")}
TEXTURES = {"plain": ("plain", "solid"), "striped": ("striped", "stripy"), "dotted": ("dotted", "spotted")}
BACKGROUNDS = {name: (name,) for name in ("white", "grey", "mint", "beige")}
FIELDS = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "texture": TEXTURES, "background": BACKGROUNDS}

# Direction -> how it is said of two objects, of the second one alone ("A and, below it, B"), and of the picture.
OF = {"left of": ("left of", "to the left of"), "right of": ("right of", "to the right of"),
      "above": ("above", "over"), "below": ("below", "under")}
ITS = {"left of": "to its left", "right of": "to its right", "above": "above it", "below": "below it"}
AT = {"left of": "on the left", "right of": "on the right", "above": "at the top", "below": "at the bottom"}
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

# s and o: subject and object of the relation `of`; `also`: the third object, if any; `ground`: the background's name.
TEMPLATES = (
    "{s} {of} {o}{also}, on {ground}",
    "on a {ground} background, {s} is {of} {o}{also}",
    "{of} {o} there is {s}{also}; the background is {ground}",
    "{at} {s}, {at_other} {o}{also}, all on {ground}",
    "{s} and {its} {o}{also}, against {ground}",
    "a picture of {s} {of} {o}{also}",
    "{ground} behind {s} which sits {of} {o}{also}",
    "a {ground} scene: {s} lies {of} {o}{also}",
)
ALSO = (", and {t}", ", with {t}", ", also {t}")
CAPTIONS = 5

_WORDS = {word: (field, name) for field, table in FIELDS.items() for name, words in table.items() for word in words}
_CUES = {"left": "left of", "right": "right of", "top": "above", "bottom": "below",
         **{word: name for name in ("above", "below") for word in OF[name]}}


def write_captions(scene: dict, below: Callable[[int], int]) -> list[str]:
    """Five captions of `scene`, each from another template; `below(n)` draws an integer in [0, n).

    Each names colour and shape of every object and the relation; stripes and dots always, sizes and the background
    mostly, plainness half of the time.
    """
    order = sorted(range(len(TEMPLATES)), key=lambda _: below(2**31))
    return [_write(scene, TEMPLATES[i], below) for i in order[:CAPTIONS]]


def _write(scene: dict, template: str, below: Callable[[int], int]) -> str:
    """One caption; subject and object change places half of the time, and the direction with them."""
    leave_out = {"size"} if below(6) == 0 else set()
    leave_out |= {"plain"} if below(2) == 0 else set()
    order = (("size", "texture", "colour", "shape"), ("size", "colour", "texture", "shape"))[below(2)]

    def phrase(thing: dict) -> str:
        named = [(field, thing[field]) for field in order if not leave_out & {field, thing[field]}]
        words = [FIELDS[field][name][below(len(FIELDS[field][name]))] for field, name in named]
        return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"

    first, second, *rest = scene["objects"]
    relation = scene["relation"]
    if below(2):
        first, second, relation = second, first, INVERSE[relation]
    return template.format(
        s=phrase(first), o=phrase(second), of=OF[relation][below(2)], its=ITS[INVERSE[relation]],
        at=AT[relation], at_other=AT[INVERSE[relation]], ground=scene["background"],
        also="".join(ALSO[below(len(ALSO))].format(t=phrase(thing)) for thing in rest))


def parse(caption: str) -> dict:
    """What `caption` says, as a scene dict: `objects` (colour, shape, size, texture), `relation`, `background`.

    An object is a shape word with the attribute words before it; what is not said is None. The first direction that
    joins two objects is the relation; it is turned into `left of` or `above`, its two objects come first and the
    others are sorted, so that captions of one meaning give equal dicts. Any text is read without raising.
    """
    words = re.findall(r"[a-z]+", caption.lower())
    objects, pending, background, link = [], {}, None, None
    for i, word in enumerate(words):
        field, name = _WORDS.get(word, (None, None))
        if field == "background":
            background = background or name
        elif field == "shape":
            objects.append({key: pending.get(key) for key in ("colour", "size", "texture")} | {"shape": name})
            pending = {}
        elif field:
            pending[field] = name
        elif word in _CUES and link is None:
            link = (_CUES[word], *_ends(word, words[i + 1:i + 2], len(objects)))
    return {**_canonical(objects, link), "background": background}


def _ends(word: str, following: list[str], seen: int) -> tuple[int, int]:
    """Which objects (by order of mention) a direction joins, as (subject, object), after `seen` objects were named."""
    joins = following == ["of"] if word in ("left", "right") else word not in ("top", "bottom") and following != ["it"]
    if joins:  # "A left of B"; "left of B there is A"
        return (seen - 1, seen) if seen else (1, 0)
    return (seen, seen - 1) if seen else (0, 1)  # "A and to its left B"; "on the left A, on the right B"


def _canonical(objects: list[dict], link: tuple[str, int, int] | None) -> dict:
    """Objects and relation with the direction turned into `left of` or `above`, and the other objects sorted."""
    def key(thing: dict) -> tuple:
        return tuple(thing[field] or "" for field in ("colour", "shape", "size", "texture"))

    if link is None or max(link[1:]) >= len(objects):
        return {"objects": sorted(objects, key=key), "relation": None}
    relation, first, second = link
    if relation in ("right of", "below"):
        relation, first, second = INVERSE[relation], second, first
    rest = [thing for i, thing in enumerate(objects) if i not in (first, second)]
    return {"objects": [objects[first], objects[second], *sorted(rest, key=key)], "relation": relation}


def attributes_right(caption: str, truth: dict) -> dict[str, int]:
    """How much of `truth` (a scene dict) the caption gets right, as counts to be summed over captions.

    Keys `colour_right`, `colour_total`, `shape_right`, `shape_total`, `relation_right`, `relation_total`. Objects are
    matched one to one so that most colours and shapes agree; objects named too few or too many count as wrong. A
    relation is right when it holds, in that direction, between the two matched objects: the one the scene was made
    from, and where `truth` has centres any that can be seen (of three objects no picture tells which two were meant).
    """
    said, true = parse(caption), truth["objects"]
    named = said["objects"] + [{}] * (len(true) - len(said["objects"]))

    def agree(match: tuple[int, ...], field: str) -> int:
        return sum(named[i].get(field) == thing[field] for i, thing in zip(match, true))

    candidates = permutations(range(min(len(named), 6)), len(true))  # free text may name dozens; six are enough
    best = max(candidates, key=lambda match: agree(match, "colour") + agree(match, "shape"))
    counts = {}
    for field in ("colour", "shape"):
        counts |= {f"{field}_right": agree(best, field), f"{field}_total": len(named)}
    joined = [best.index(i) for i in (0, 1) if i in best]                     # places in `true` of subject and object
    holds = said["relation"] is not None and len(joined) == 2 and _holds(said["relation"], joined, truth)
    return counts | {"relation_right": int(holds), "relation_total": 1}


def _holds(relation: str, joined: list[int], truth: dict) -> bool:
    """Whether the first joined object is `left of` or `above` the second: further along that way than across it."""
    if joined == [0, 1] and relation == truth["relation"]:
        return True
    centres = [truth["objects"][i].get("centre") for i in joined]
    if None in centres:
        return False
    x, y = (there - here for here, there in zip(*centres))
    along, across = (x, y) if relation == "left of" else (y, x)
    return along > abs(across)
