"""What is kept for a gallery, and the words that tell its pictures apart. No browser."""

import gc
import weakref

import pytest

pytest.importorskip("gradio")
pytest.importorskip("faiss")

from app import vocabulary
from app.bench import kept
from app.models import Choice, View


def test_what_is_made_for_a_gallery_is_made_once_and_for_it_alone(bench, view):
    made = []

    @kept
    def counted(bench, view):
        made.append(view)
        return len(made)

    other = bench.open(View(Choice(view.choice.source, "checkpoint-7"), view.gallery))
    assert [counted(bench, view), counted(bench, view), counted(bench, other), counted(bench, view)] == [1, 1, 2, 1]


def test_what_is_made_goes_with_its_gallery():
    class Held:
        """Stands for a gallery and what was made of it."""

    class Bench:
        def gallery(self, view):
            return view

    make = kept(lambda bench, view: Held())
    view = Held()
    made = weakref.ref(make(Bench(), view))
    assert made() is not None
    del view
    gc.collect()
    assert made() is None


def test_words_that_tell_pictures_apart_are_said_of_some_and_not_of_most():
    said = vocabulary.words(["A red ring", "a blue ring!", "A red, red square", "a star"])
    assert said[0] == {"a", "red", "ring"} and said[2] == {"a", "red", "square"}
    assert vocabulary.telling(said, 0.5, 0.9) == ["red", "ring"]
    assert vocabulary.telling(said, 0.2, 0.3) == ["blue", "square", "star"]
    assert "a" not in vocabulary.telling(said, 0, 1), "it is said of anything"


def test_words_to_colour_by_are_such_that_many_texts_have_just_one():
    said = vocabulary.words(["big red", "big blue", "big blue", "big", "green", "red green"])
    offered = ["big", "blue", "red", "green"]
    assert vocabulary.apart(said, offered, 5) == ["big", "green"], "each colour more would take from the others"
    assert vocabulary.apart(said, offered[1:], 1) == ["blue"] and vocabulary.apart(said, [], 5) == []
