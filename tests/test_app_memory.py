"""The Memory tab without a browser: sessions, undo to the bit, what is refused, what slots say, the download."""

import hashlib
import json
import math
import os
import random

import pytest
import torch
from app_visitor import Page
from PIL import Image

pytest.importorskip("gradio")
pytest.importorskip("faiss")

from safetensors.torch import load as load_tensors
from safetensors.torch import save_file

import bitgen
from app import caption, facts, memory, saved, search, slots
from app.bench import Bench
from app.main import launch
from app.memory import Edits
from app.models import Choice, View
from app.search import Query
from bitgen import slots as library

WORDS = ["a red ring", "a green star", "a blue square", "a pink heart", "a purple triangle", "an orange circle"]


@pytest.fixture(scope="module")
def place(place):
    """With six pictures, `0.png` to `5.png`, that no gallery has."""
    for i in range(6):
        picture = Image.effect_noise((32, 32), 40 + 30 * i).convert("RGB")
        Image.blend(picture, Image.new("RGB", (32, 32), (40 * i, 200 - 30 * i, 90)), 0.6).save(place / f"{i}.png")
    return place


def digest(tensors):
    return hashlib.sha256(b"".join(x.detach().contiguous().numpy().tobytes() for x in tensors)).hexdigest()


def state(bench, view, edits):
    return digest(memory.belief(bench.model(view).model, memory.of(bench, view, edits)))


def written(bench, view, place, count):
    edits = Edits()
    for i in range(count):
        edits = memory.write(bench, view, edits, str(place / f"{i}.png"), WORDS[i])
    return edits


def test_random_edits_of_many_sessions_follow_a_plain_model(bench, view, place):
    """Sessions take turns; each is held against a list and a stack, and no shared tensor ever changes."""
    views = [view, View(Choice(view.choice.source, "checkpoint-7"), view.gallery)]
    models = [bench.model(each).model for each in views]
    right = {each: search.search(bench, each, Query("a red ring")).hits for each in map(bench.open, views)}
    before, dice = [digest(model.state_dict().values()) for model in models], random.Random(0)
    sessions = [{"view": views[i % 2], "edits": Edits(), "facts": [], "past": [], "states": []} for i in range(8)]
    for _ in range(300):
        one = dice.choice(sessions)
        choice = dice.choice(["write", "write", "write", "write", "forget", "undo", "search", "export", "switch"])
        if choice == "search":
            assert search.search(bench, one["view"], Query("a red ring")).hits == right[one["view"]]
        elif choice == "export":
            data = saved.download(bench, one["view"], one["edits"])
            said = json.loads(data[8:8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            assert json.loads(said["facts"]) == one["facts"] and said["checkpoint"] == one["view"].choice.title
        elif choice == "switch" and dice.random() < 0.2:  # the other checkpoint knows nothing of all that
            one["view"] = views[one["view"] == views[0]]
            one["edits"] = memory.of(bench, one["view"], one["edits"])
            one["facts"], one["past"], one["states"] = [], [], []
        elif choice == "undo" and one["past"]:
            one["edits"], one["facts"] = memory.undo(bench, one["view"], one["edits"]), one["past"].pop()
            assert state(bench, one["view"], one["edits"]) == one["states"].pop()
        elif choice == "forget" and one["facts"]:
            number = dice.randint(1, len(one["facts"]))
            one["past"].append(list(one["facts"]))
            one["states"].append(state(bench, one["view"], one["edits"]))
            one["edits"] = memory.forget(bench, one["view"], one["edits"], number)
            del one["facts"][number - 1]
        elif choice == "write" and len(one["facts"]) < 5:
            i = dice.randrange(6)
            one["past"].append(list(one["facts"]))
            one["states"].append(state(bench, one["view"], one["edits"]))
            one["edits"] = memory.write(bench, one["view"], one["edits"], str(place / f"{i}.png"), WORDS[i])
            one["facts"].append(WORDS[i])
        one["past"], one["states"] = one["past"][-memory.UNDO:], one["states"][-memory.UNDO:]
        for each in sessions:
            assert [fact.text for fact in each["edits"].facts] == each["facts"]
    for one in sessions:
        while one["past"]:
            one["edits"], _ = memory.undo(bench, one["view"], one["edits"]), one["past"].pop()
            assert state(bench, one["view"], one["edits"]) == one["states"].pop()
    assert [digest(model.state_dict().values()) for model in models] == before


def test_forgetting_leaves_a_memory_that_never_knew_the_fact(bench, view, place):
    """Not only by a replay: it is what subtracting the fact's evidence gives."""
    edits = written(bench, view, place, 3)
    less = memory.forget(bench, view, edits, 3)
    assert state(bench, view, less) == state(bench, view, written(bench, view, place, 2))
    model, last = bench.model(view).model, edits.facts[2]
    taken = model.memory.forget(memory.belief(model, edits), last.key[None], last.value[None])
    torch.testing.assert_close(taken.mean(), memory.belief(model, less).mean(), atol=1e-3, rtol=1e-3)


def test_facts_are_ranked_by_what_comes_back_when_their_picture_is_shown(bench, view, place):
    alone = memory.read_back(bench, view, written(bench, view, place, 1))
    assert [row[:2] for row in alone] == [(WORDS[0], 1)] and alone[0][3] < alone[0][2]
    edits, model = written(bench, view, place, 5), bench.model(view).model
    rows, values = memory.read_back(bench, view, edits), torch.stack([fact.value for fact in edits.facts])
    held, centre = memory.belief(model, edits), values.mean(0)
    for (text, rank, before, now), fact in zip(rows, edits.facts):
        returned = model.memory.read(held, fact.image[None]).mean[0]
        cosines = [torch.cosine_similarity(returned - centre, value - centre, dim=0).item() for value in values]
        assert text == fact.text and now < before
        assert rank == 1 + sum(c > cosines[WORDS.index(text)] + 1e-6 for c in cosines)
    assert "5 written" in memory.summary(rows) and "Nothing is written" in memory.summary([])
    assert "1 written, 1 comes back first when its picture is shown" in memory.summary(alone)


def test_before_is_without_and_after_with_the_facts(bench, view, place):
    file = str(place / "0.png")
    before, after = memory.tell(bench, view, written(bench, view, place, 1), file)
    assert {source for source, *_ in before.recalled} == {"gallery"} and len(before.recalled) == 5
    assert after.recalled[0][:2] == ("written", WORDS[0]) and after.variance < before.variance
    untouched = memory.tell(bench, view, Edits(), file)
    assert untouched[0] == untouched[1] == before


def test_another_checkpoint_starts_without_facts(bench, view, place):
    edits, other = written(bench, view, place, 2), View(Choice(view.choice.source, "checkpoint-7"), view.gallery)
    assert memory.of(bench, other, edits).facts == () and memory.of(bench, view, edits) is edits
    with pytest.raises(ValueError, match="nothing to undo"):
        memory.undo(bench, other, edits)


@pytest.mark.parametrize("file, text, message", [
    (None, "a ring", "give the picture"), ("0.png", "  ", "type the words"), ("0.png", None, "type the words"),
    ("0.png", "x" * 301, "at most 300"), ("0.png", "x" * 3000, "at most 2000"), ("gone.png", "a ring", "gone.png")])
def test_facts_that_are_none_are_refused(bench, view, place, file, text, message):
    with pytest.raises(ValueError, match=message):
        memory.write(bench, view, Edits(), file and str(place / file), text)


@pytest.mark.parametrize("number", [None, 0, 3, -1, 1.5, math.nan, math.inf, "1", True])
def test_a_fact_that_is_not_there_cannot_be_forgotten(bench, view, place, number):
    with pytest.raises(ValueError, match="number of the fact|choose the fact"):
        memory.forget(bench, view, written(bench, view, place, 2), number)


def test_nothing_can_be_forgotten_or_undone_at_first(bench, view):
    for step in (lambda: memory.forget(bench, view, Edits(), 1), lambda: memory.undo(bench, view, Edits())):
        with pytest.raises(ValueError, match="nothing"):
            step()


def test_a_session_is_bounded(bench, view, place, monkeypatch):
    monkeypatch.setattr(memory, "FACTS", 2)
    monkeypatch.setattr(memory, "UNDO", 3)
    edits = written(bench, view, place, 2)
    with pytest.raises(ValueError, match="forget one first"):
        memory.write(bench, view, edits, str(place / "0.png"), "a ring")
    for _ in range(4):
        edits = memory.forget(bench, view, edits, 1)
        edits = memory.write(bench, view, edits, str(place / "0.png"), "a ring")
    assert len(edits.past) == 3


@pytest.mark.parametrize("part", ["key", "image", "value"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_not_written(bench, view, place, monkeypatch, part, number):
    encoded = memory._encoded

    def spoilt(*given):
        parts = dict(zip(("key", "image", "value"), encoded(*given)))
        parts[part][0, 3] = number
        return tuple(parts.values())

    monkeypatch.setattr(memory, "_encoded", spoilt)
    with pytest.raises(ValueError, match="not finite"):
        memory.write(bench, view, Edits(), str(place / "0.png"), "a ring")


def test_slots_tell_usage_norm_address_and_age(bench, view, place):
    empty = slots.look(bench, view, Edits())
    count = bench.model(view).model.memory.slots
    assert all(x.shape == (count,) for x in empty)
    assert all(map(math.isnan, empty.address)) and all(map(math.isnan, empty.age))
    full = slots.look(bench, view, written(bench, view, place, 3), Query("a red ring"))
    assert full.address.sum() == pytest.approx(1) and (full.norm != empty.norm).all()
    assert set(full.age[~torch.isnan(torch.from_numpy(full.age)).numpy()]) <= {0, 1, 2} and 0 in full.age


def test_the_age_of_a_slot_counts_from_the_fact_that_was_written_last(bench, view, place):
    held, keys = bench.model(view).model.memory, torch.eye(32)[:5]
    edits = Edits(view.choice, tuple(facts.Fact("a ring", key, key, key) for key in keys))
    touched = (library.mass(held.address(keys)) > 1 / held.slots).flip(0)  # the one that was written last comes first
    expected = [next((ago for ago in range(5) if touched[ago, slot]), math.nan) for slot in range(held.slots)]
    assert {0, 1} < set(expected), "slots are of different ages"
    assert slots.look(bench, view, edits).age.tolist() == pytest.approx(expected, nan_ok=True)


def test_a_slot_stands_for_the_pictures_that_use_it_most(bench, view):
    found, words = slots.stands_for(bench, view, 1)
    shares = [share for *_, share in found]
    assert shares == sorted(shares, reverse=True) and len(found) == 6 and words
    known = memory.known_of(bench, view)
    address = bench.model(view).model.memory.address(known.facts.key)
    assert shares[0] == pytest.approx((address / address.sum(1, keepdim=True))[:, 1].max().item(), rel=1e-5)
    for bad in (-1, 10**6, None, math.nan):
        with pytest.raises(ValueError, match="slot"):
            slots.stands_for(bench, view, bad)


def test_likeness_is_drawn(bench, view):
    assert len(slots.likeness(bench, view).axes) == 3


def test_capacity_is_measured_as_the_library_does(bench, view):
    figure, line = slots.capacity(bench, view)
    known = memory.known_of(bench, view)
    curves = library.capacity(bench.model(view).model.memory, known.facts, [2, 4, 8, 16, 24])
    drawn = {tuple(curve.get_ydata()) for curve in figure.axes[0].lines}
    assert {tuple(curves[name]) for name in ("pair", "image", "never", "chance")} <= drawn
    enough = [count for count, share in zip([2, 4, 8, 16, 24], curves["image"]) if share >= slots.ENOUGH]
    assert line.startswith(f"Up to {enough[-1]} facts" if enough else "Not even two")
    assert f"of 24, {curves['image'][-1]:.0%} do" in line


def test_the_download_is_the_memory_of_the_session(bench, view, place):
    edits, model = written(bench, view, place, 3), bench.model(view).model
    tensors = load_tensors(saved.download(bench, view, edits))
    assert set(tensors) == {name for name in model.state_dict() if name.startswith("memory.")}
    prior = model.memory.prior()
    held = memory.belief(model, edits)
    torch.testing.assert_close(tensors["memory.written_precision"] + prior.precision, held.precision)
    torch.testing.assert_close(tensors["memory.written_information"] + prior.information, held.information)


def test_a_saved_folder_is_the_model_with_the_memory_of_the_session(bench, view, place, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "save_to", tmp_path)
    edits, model = written(bench, view, place, 3), bench.model(view).model
    before = digest(model.state_dict().values())
    folder = saved.save(bench, view, edits, "with-facts")
    assert folder == tmp_path / "with-facts" and os.listdir(tmp_path) == ["with-facts"], "nothing half-made is left"
    opened, processor = bitgen.load(folder)
    for one, other in zip(opened.memory.persistent(), memory.belief(model, edits)):
        torch.testing.assert_close(one, other)
    rest = {name: x for name, x in model.state_dict().items() if not name.startswith("memory.written")}
    assert all(torch.equal(opened.state_dict()[name], x) for name, x in rest.items())
    assert digest(model.state_dict().values()) == before and bench.model(view).model.memory is model.memory


@pytest.fixture
def reopened(bench, view, place, tmp_path, monkeypatch):
    """A folder saved with three facts, opened by another server: its bench, and what a visitor sees first."""
    monkeypatch.setattr(bench, "save_to", tmp_path)
    folder = saved.save(bench, view, written(bench, view, place, 3), "with-facts")
    there = Bench(str(folder), view.gallery, tmp_path / "none", tmp_path)
    return there, there.open(there.start)


def test_a_saved_folder_opens_with_its_facts(bench, view, place, reopened):
    """To the bit what the session held that saved it; without any edit the fact of a picture comes first."""
    there, here = reopened
    assert state(there, here, Edits()) == state(bench, view, written(bench, view, place, 3))
    for i in range(3):
        before, after = memory.tell(there, here, Edits(), str(place / f"{i}.png"))
        assert after == before and after.recalled[0][:2] == ("written", WORDS[i])
    rows = memory.read_back(there, here, Edits())
    assert [row[0] for row in rows] == WORDS[:3] and all(now < before for *_, before, now in rows)
    said = memory.summary(rows, memory.saved_of(memory.of(there, here, Edits())))
    assert said.startswith("3 written, 3 of them saved with the model, ")
    assert memory.of(there, here, Edits()) == Edits(here.choice, there.model(here).facts), "nothing to undo"


def test_captions_know_the_facts_that_were_saved(place, reopened, monkeypatch):
    there, here = reopened
    asked, say = [], there.model(here).model.caption
    monkeypatch.setattr(there.model(here).model, "caption", lambda *a, **k: asked.append(k["belief"]) or say(*a, **k))
    said = caption.caption(there, here, str(place / "0.png"))
    assert said == [memory.tell(there, here, Edits(), str(place / "0.png"))[0].caption]
    held = memory.belief(there.model(here).model, memory.of(there, here, Edits()))
    assert all(torch.equal(mine, other) for mine, other in zip(asked[0], held))


def test_saved_facts_are_edited_like_others_and_saved_again(place, reopened, tmp_path):
    there, here = reopened
    edits = memory.write(there, here, memory.forget(there, here, Edits(), 2), str(place / "4.png"), WORDS[4])
    assert [(fact.text, fact.saved) for fact in edits.facts] == [
        (WORDS[0], True), (WORDS[2], True), (WORDS[4], False)]
    before, after = memory.tell(there, here, edits, str(place / "1.png"))
    assert before.recalled[0][1] == WORDS[1] and WORDS[1] not in [words for at, words, _ in after.recalled
                                                                  if at == "written"]
    again = saved.save(there, here, edits, "again")
    assert [fact.text for fact in facts.read(again, 32)] == [WORDS[0], WORDS[2], WORDS[4]]
    emptied = edits
    for _ in range(3):
        emptied = memory.forget(there, here, emptied, 1)
    assert facts.read(saved.save(there, here, emptied, "emptied"), 32) == ()


def test_a_script_reads_what_was_saved(place, reopened, tmp_path):
    model, processor = bitgen.load(tmp_path / "with-facts")
    held = facts.read(tmp_path / "with-facts", 32)
    pixels = processor(images=[str(place / f"{i}.png") for i in range(3)])["pixel_values"]
    returned = model.memory.read(model.memory.persistent(), model.encode_image(pixels)).mean
    values = torch.stack([fact.value for fact in held])
    cosines = torch.cosine_similarity((returned - values.mean(0))[:, None], values - values.mean(0), dim=-1)
    assert cosines.argmax(1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("change, message", [
    ({"key": torch.zeros(2, 31)}, "key of \\(2, 31\\)"), ({"value": torch.zeros(3, 32)}, "value of \\(3, 32\\)"),
    ({"image": torch.full((2, 32), torch.nan)}, "not finite"), ({"image": None}, "image"),
    ({"words": '["a"]'}, "key of"), ({"words": "5"}, "words"), ({"words": None}, "words"),
    ({"words": "[1, 2]"}, "words"), ({"words": "["}, "words")])
def test_a_file_of_facts_that_holds_something_else_is_refused(tmp_path, change, message):
    content = {name: torch.zeros(2, 32) for name in ("key", "image", "value")} | {"words": '["a", "b"]'} | change
    words = content.pop("words")
    save_file({name: x for name, x in content.items() if x is not None}, tmp_path / facts.FILE,
              metadata=None if words is None else {"words": words})
    with pytest.raises(ValueError, match=f"facts.safetensors: expected facts .*{message}"):
        facts.read(tmp_path, 32)
    (tmp_path / facts.FILE).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="facts.safetensors: expected facts"):
        facts.read(tmp_path, 32)


@pytest.mark.parametrize("name", [None, "", " ", ".", "..", "../out", "/tmp/out", "a/b", "a\\b", ".hidden", "-rf",
                                  "a b", "n" * 65, "ä", "a\n", "a\0", "<b>", "taken", "file", "link", "nowhere"])
def test_a_folder_is_saved_below_the_operators_alone_and_over_nothing(bench, view, place, tmp_path, monkeypatch, name):
    kept = tmp_path / "kept"
    monkeypatch.setattr(bench, "save_to", kept)
    (kept / "taken").mkdir(parents=True)
    (kept / "file").write_text("mine")
    (kept / "link").symlink_to(tmp_path)
    (kept / "nowhere").symlink_to(tmp_path / "nowhere")
    there = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="name of the new folder: (expected|there is a)"):
        saved.save(bench, view, written(bench, view, place, 1), name)
    assert sorted(tmp_path.rglob("*")) == there and (kept / "file").read_text() == "mine"


def test_saving_that_is_off_or_fails_says_so_and_leaves_nothing(bench, view, place, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="saving is off: start the app with --save-to"):
        saved.save(bench, view, Edits(), "mine")
    monkeypatch.setattr(bench, "save_to", tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device", "/secret/path")

    monkeypatch.setattr("bitgen.processing.Processor.save", full)
    with pytest.raises(ValueError, match="^'mine' was not saved: No space left on device$"):
        saved.save(bench, view, Edits(), "mine")
    assert os.listdir(tmp_path) == []
    monkeypatch.setattr(saved, "MOST", 0)
    with pytest.raises(ValueError, match="0 folders are saved"):
        saved.save(bench, view, Edits(), "mine")


def test_one_of_two_that_save_the_same_name_is_told(bench, view, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "save_to", tmp_path)
    write = saved._write

    def slowly(folder, *rest):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "theirs").write_text("first")
        write(folder, *rest)

    monkeypatch.setattr(saved, "_write", slowly)
    with pytest.raises(ValueError, match="'mine' was not saved: Directory not empty|File exists"):
        saved.save(bench, view, Edits(), "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "theirs"]


def test_saving_needs_a_folder_that_can_be_written_and_no_strangers(tmp_path):
    assert saved.place(None, "0.0.0.0") is None
    assert saved.place(str(tmp_path / "new" / "one"), "127.0.0.1").is_dir()
    with pytest.raises(ValueError, match="--save-to lets visitors write .* got --host 0.0.0.0"):
        saved.place(str(tmp_path), "0.0.0.0")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--save-to .*file: expected a folder that can be written"):
        saved.place(str(tmp_path / "file"), "127.0.0.1")


def test_the_page_saves_the_memory_of_its_session(place, tmp_path):
    demo = launch(str(place / "runs/first"), str(place / "gallery"), save_to=str(tmp_path), block=False, quiet=True)
    with Page(demo.local_url) as page:
        page.event("first")
        file = page.upload(("0.png", (place / "0.png").read_bytes()))[0]
        page.event("written", None, None, file, WORDS[0])
        assert page.event("kept_as", None, None, "mine") == [str(tmp_path / "mine")]
        said, good = page.send("kept_as", None, None, "mine")
        assert not good and "nothing is written over" in said["error"]
    demo.close()
    assert [fact.text for fact in facts.read(tmp_path / "mine", 32)] == WORDS[:1]


def test_a_gallery_without_captions_tells_what_it_can(bench, place):
    (place / "bare").mkdir()
    for i in range(3):
        Image.open(place / f"{i}.png").save(place / "bare" / f"{i}.png")
    bare = Bench(str(place / "runs/first"), str(place / "bare"), place / "runs")
    view = bare.open(bare.start)
    assert slots.stands_for(bare, view, 0) == ([], [])
    assert memory.tell(bare, view, Edits(), str(place / "0.png"))[0].recalled == []
    with pytest.raises(ValueError, match="no captions"):
        slots.likeness(bare, view)
    with pytest.raises(ValueError, match="fewer than two captions"):
        slots.capacity(bare, view)
    with pytest.raises(ValueError, match="no captions to take"):
        memory.any_fact(bare, view)


def test_an_example_is_a_picture_with_words_of_another(bench, view):
    gallery = bench.gallery(view)
    for _ in range(50):
        picture, words = memory.any_fact(bench, view)
        own = [name for name in gallery.ids if gallery.original(name).tobytes() == picture.tobytes()]
        assert own and words not in gallery.captions(own[0]) and any(words in gallery.captions(n) for n in gallery.ids)
