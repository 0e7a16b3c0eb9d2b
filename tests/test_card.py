"""The model card: every number from the run's files, no name breaks out of it, its code runs as printed."""

import ast
import json
import random
import re

import pytest
import yaml
from conftest import TOWER
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from safetensors.torch import save_model

from bitgen import card, checkpoint
from bitgen.checkpoint import file_digest
from bitgen.cli import main
from bitgen.config import Config, ModelConfig, VisionConfig, to_dict
from bitgen.model import BitGen
from bitgen.outbox import ROOT
from bitgen.processing import Processor
from bitgen.push import push_run
from bitgen.record import read
from bitgen.tokenizer import Tokenizer

RECALL = {f"{prefix}{way}_r{k}": 0.731 for prefix in ("", "rerank_", "rerank_itm_", "chance_") for way in ("t2i", "i2t")
          for k in (1, 5, 10)}
TRAINED = {"itc": 0.83, "itc_chance": 6.41, "itm": 0.61, "itm_acc": 0.92, "itm_acc_chance": 0.66, "text": 1.79,
           "text_floor": 0.93, "text_nll": 1.06, "text_chance": 6.13, "memory_kl": 0.52, "memory_quality": 0.82,
           "total": 2.5}
FILES = {
    "test.json": {"images": 1000, "captions": 5000, **RECALL, "t2i_r1_low": 0.71, "t2i_r1_high": 0.75,
                  "i2t_r1_low": 0.77, "i2t_r1_high": 0.82, "perplexity": 3.08, "perplexity_blank": 10.8,
                  "perplexity_shuffled": 7.4, "perplexity_memory": 3.05, "chance_perplexity": 463.0,
                  "caption_colour": 0.93, "chance_caption_colour": 0.21, "caption_shape": 0.19,
                  "chance_caption_shape": 0.18, "of": {"data": "scenes", "split": "test", "level": 0.95}},
    "run_facts.json": {"steps": 800, "data": {
        split: {"images": 12000, "captions": 60000, "unreadable": 3, "ascii_captions": 59000}
        for split in ("train", "val")},
        "parameters": {"total": 2_290_432, "outside_tower": 1_600_000, "learning": 2_200_000,
                       "by_part": {"text": 500_000, "vision": 690_000}},
        "machine": {"device": "cpu", "name": "x86_64", "system": "Linux", "cpu_cores": 2, "threads": 2, "processes": 1},
        "precision": "float32", "software": {"python": "3.11.9", "bitgen": "0.1.0", "torch": "2.13.0"},
        "git": {"revision": "37559b9c0ffee", "changed": True}},
    "accounting.json": {"samples": 47872, "seconds": 533.0, "training_seconds": 500.0, "flops": 5.2e13,
                        "flops_per_sample": {"without queue": 1.1e9, "with queue": 1.3e9}, "energy_joules": 41234.0,
                        "energy_sources": ["RAPL 0 package-0"], "peak_memory_bytes": 1_300_000_000, "sessions": 2},
    "health.json": {"verdicts": [
        {"check": name, "value": 0.42, "verdict": verdict, "rule": "itm_acc above 0.777 | always",
         "meaning": "no <learning>", "remedy": "more", "chance": 0.1, "due": 500, "judged": name != "leak"}
        for name, verdict in {"contrast": "OK", "memory": "WATCH", "numbers": "BAD", "leak": "OK"}.items()]},
    "run.json": to_dict(Config()),
    "checkpoint-748/MANIFEST.json": {"step": 748, "sequence": 3},
}
ROWS = [{"step": 700, **TRAINED}, {"step": 748, **TRAINED, **{f"val_{key}": 0.5 * value for key, value in (
    TRAINED | RECALL).items()}, "val_images": 500.0}]


def scrambled(value, draw):
    """The same with every number replaced by another of its kind."""
    if isinstance(value, dict):
        return {key: scrambled(inner, draw) for key, inner in value.items()}
    if isinstance(value, list):
        return [scrambled(inner, draw) for inner in value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    if isinstance(value, int):
        return int(value * draw.uniform(1.5, 9)) + draw.randrange(11, 997)
    return value * draw.uniform(0.3, 0.99) or draw.random()


def written(folder, seed=0, weights=b"weights", **changes):
    """A run folder with all that a card is made from, its numbers drawn by `seed`; `changes` of run.json by section."""
    draw = random.Random(seed)
    files = {name: scrambled(content, draw) for name, content in FILES.items()}
    for section, values in changes.items():
        files["run.json"][section] |= values
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    sha256 = file_digest(folder / "model.safetensors")
    files["checkpoint-748/MANIFEST.json"]["files"] = {"model.safetensors": [7, sha256]}
    files["test.json"]["of"]["weights"] = sha256
    (folder / "checkpoint-748").mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(scrambled(row, draw)) + "\n" for row in ROWS))
    return folder


def told(folder):
    """The card's text, without drawing its picture."""
    return card.render(read(folder), drawn=True)


# Numbers --------------------------------------------------------------------------------------------------

UNITS = {"days": 86400, "h": 3600, "min": 60, "s": 1, "%": 0.01, "": 1,
         **{prefix + unit: size for unit in ("FLOP", "J", "B")
            for prefix, size in {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}.items()}}
NUMBER = re.compile(r"(?<![\w@.-])(\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)(?: ?([PTGMk]?(?:FLOP|J|B)|days|min|h|s|%)(?!\w))?")


def leaves(value):
    """Every number and text in nested JSON."""
    if isinstance(value, (dict, list)):
        return [leaf for inner in (value.values() if isinstance(value, dict) else value) for leaf in leaves(inner)]
    return [value]


def in_files(folder):
    """Numbers and texts of the run's files."""
    found = [leaf for path in folder.rglob("*.json") for leaf in leaves(json.loads(path.read_text()))]
    found += [leaf for row in (folder / "metrics.jsonl").read_text().splitlines() for leaf in leaves(json.loads(row))]
    return [leaf for leaf in found if isinstance(leaf, (int, float))], {x for x in found if isinstance(x, str)}


def tokens(text, texts=frozenset()):
    """(number, unit) of each number in a card, outside the texts that were taken over from the files as they are."""
    text = re.sub(r"\\([^a-zA-Z0-9\s])", r"\1", text)
    for known in sorted(texts, key=len, reverse=True):
        if re.search(r"\d", known):
            text = re.sub(rf"(?<![\w.]){re.escape(known)}(?![\w.]*\w)", "…", text)
    return NUMBER.findall(text)


def unfounded(text, folder):
    """The numbers of a card that are in none of the run's files."""
    numbers, texts = in_files(folder)
    wrong = []
    for token, unit in tokens(text, texts):
        value, size = float(token.replace(",", "")), UNITS[unit]
        mantissa, _, exponent = token.partition("e")
        digits = len(mantissa.partition(".")[2]) - int(exponent or 0)
        near = 1e-9 if not digits and not unit and value < 100 else 0.5001 * 10.0**-digits * size
        if not any(abs(value * size - known) <= near for known in numbers):
            wrong.append(token + unit)
    return wrong


@pytest.mark.parametrize("seed", range(3))
def test_every_number_of_the_card_is_in_the_files_of_the_run(tmp_path, seed):
    folder = written(tmp_path / "run", seed)
    text = told(folder)
    assert len(tokens(text, in_files(folder)[1])) > 120
    assert unfounded(text, folder) == []
    made_up = "\n0.123456789 of 31,999,999 in 1.2345 h"
    assert unfounded(text + made_up, folder) == ["0.123456789", "31,999,999", "1.2345h"]


def test_no_number_is_typed_into_the_card(tmp_path):
    """Two runs that share no number have cards that share none, word for word the same otherwise."""
    texts = []
    for seed in (1, 2):
        folder = written(tmp_path / str(seed) / "run", seed)
        texts.append((told(folder).replace(str(folder), "run"), in_files(folder)[1]))
    first, second = ([token for token, _ in tokens(text, known)] for text, known in texts)
    assert len(first) == len(second) > 120
    assert [token for token, other in zip(first, second) if token == other] == []
    same = [re.sub(r" [PTGMk]?(FLOP|J|B)\b| (days|h|min|s) ", " unit ", NUMBER.sub("0", text)) for text, _ in texts]
    assert len(set(same)) == 1


def test_recall_stands_beside_chance_and_the_size_of_the_gallery(tmp_path):
    text = told(written(tmp_path / "run"))
    report = json.loads((tmp_path / "run" / "test.json").read_text())
    head, _, *rows = next(part for part in text.split("\n\n") if part.startswith("| `scenes`, test")).splitlines()
    assert f"{report['images']:,} images, {report['captions']:,} captions" in head
    cells = {row.split(" | ")[0].strip("| "): row.strip("| ").split(" | ")[1:] for row in rows}
    for title, prefix in card.KINDS.items():
        keys = [f"{prefix}{way}_r{k}" for way in ("t2i", "i2t") for k in (1, 5, 10)]
        assert cells[title] == [f"{report[key]:.3f}" for key in keys]


def test_what_is_unknown_is_said_to_be_unknown(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(to_dict(Config())))
    (tmp_path / "metrics.jsonl").write_text("")
    text = card.write(tmp_path).read_text()
    for line in ("| energy | unknown |", "| time | unknown |", "commit unknown", "Test images: unknown",
                 "Unknown: the run has no `health.json`", "Trained for unknown steps on unknown images"):
        assert line in text
    assert "curves.png" not in text and not (tmp_path / "curves.png").exists()
    assert unfounded(text, tmp_path) == []


def test_an_evaluation_of_other_weights_is_left_out(tmp_path):
    folder = written(tmp_path / "run")
    (folder / "model.safetensors").write_bytes(b"trained further")
    text = told(folder)
    assert "of other weights: `test.json`" in text and "| `scenes`, test" not in text and "model-index" not in text
    assert "Trained for unknown steps" in text, "no checkpoint has these weights"


def test_bad_health_is_told_at_the_top(tmp_path):
    text = told(written(tmp_path / "run"))
    assert "**Not healthy: numbers**" in text.split("```")[0]
    rows = {row.split(" | ")[0]: row.split(" | ", 3)[3] for row in text.splitlines() if row.count(" | ") == 4}
    assert rows["| memory"] == r"WATCH | no \<learning\> |"
    assert rows["| contrast"] == r"OK | itm\_acc above 0.777 \| always |"
    assert rows["| leak"].startswith("not judged | "), "OK is not claimed where nothing could be said yet"


def test_limits_follow_from_the_data(tmp_path):
    drawn = told(written(tmp_path / "a"))
    other = told(written(tmp_path / "b", data={"root": "albums/photos"},
                         vision={"pretrained": "facebook/dinov2-small"}))
    assert "drawn scenes alone" in drawn and "plain ASCII" not in drawn
    assert "drawn scenes alone" not in other and "plain ASCII" in other and "bias and licence" in other
    assert "albums" not in other, "the folders around a data set are nobody's business"


# What the Hub reads ---------------------------------------------------------------------------------------


def test_the_front_matter_is_what_the_hub_understands(tmp_path):
    loaded = ModelCard.load(card.write(written(tmp_path / "run", hub={"repo": "org/name"})))
    data, report = loaded.data, json.loads((tmp_path / "run" / "test.json").read_text())
    assert (data.library_name, data.pipeline_tag, data.license) == ("bitgen", "zero-shot-image-classification", "mit")
    assert "image-text-retrieval" in data.tags and data.language == "en" and data.datasets is None
    results = {result.metric_name: result for result in data.eval_results}
    assert results["text to image R@1"].metric_value == round(report["t2i_r1"], 4)
    assert {(r.dataset_name, r.dataset_split) for r in results.values()} == {("scenes", "test")} and len(results) == 6
    assert data.model_name == "org/name" and "load('org/name')" in loaded.text


def test_only_what_is_on_the_hub_is_named_as_such(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "towers/mine").mkdir(parents=True)
    for root, pretrained, datasets, base in (
            ("hub://org/data", "facebook/dinov2-small", ["org/data"], "facebook/dinov2-small"),
            ("albums/photos", "towers/mine", None, None)):
        folder = written(tmp_path / "run", data={"root": root}, vision={"pretrained": pretrained})
        values = yaml.safe_load(told(folder).split("---\n")[1])
        assert values.get("datasets") == datasets and values.get("base_model") == base
        assert values["license"] == "unknown" and "language" not in values


NASTY = ["x\n---\nlicense: gpl-3.0\n---\n# pwned", "`` ` ``` ````", "```\n\n# pwned", "<script>alert(1)</script>",
         "a | b | c", "'] \"\"\" \\", "[x](javascript:alert(1)) ![i](http://evil/i.png)", "\u202egnp.exe\u0000\x1b[31m",
         "{images} {0} %s", "x" * 5000, " ", "**bold** @org/team #1 $$x$$ &lt; ~~s~~", "\ud800"]


@pytest.mark.parametrize("name", NASTY)
def test_no_name_breaks_out_of_markdown_or_yaml(tmp_path, name):
    """Whatever a data set, a tower, a file and the words of a check are called, the card has the same structure."""
    def structure(text):
        _, matter, body = re.split(r"^---\n", text, maxsplit=2, flags=re.M)
        tokens = MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(body)
        inline = [child.type for token in tokens for child in token.children or ()]
        return (yaml.safe_load(matter).keys(), [(token.type, token.tag) for token in tokens],
                [kind for kind in inline if kind not in ("text", "code_inline", "text_special")])

    def made(name, folder):
        written(folder, data={"root": name, "augment": "off"}, vision={"pretrained": name})
        for file, change in {"test.json": lambda v: v["of"].update(data=name or " ", split=name),
                             "health.json": lambda v: [d.update(check=name, meaning=name) for d in v["verdicts"]],
                             "run_facts.json": lambda v: v["software"].update(torch=name)}.items():
            values = json.loads((folder / file).read_text())
            change(values)
            (folder / file).write_text(json.dumps(values))
        return told(folder)

    text = made(name, tmp_path / "run")
    assert structure(text) == structure(made("plain", tmp_path / "run"))
    assert "\n# pwned" not in text and "\u202e" not in text and "\x00" not in text and len(text) < 20_000


def test_a_folder_of_any_name_can_be_loaded_by_the_printed_code(tmp_path):
    folder = written(tmp_path / "a ```\n'\" b")
    source = re.search(r"^```python\n(.+?)^```$", told(folder), re.M | re.S)[1]
    call = re.search(r"bitgen\.load\((.+)\)\n", source)[1]
    assert ast.literal_eval(call) == str(folder)


# The code -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a model that can be loaded."""
    folder = written(tmp_path_factory.mktemp("run"))
    tokenizer = Tokenizer.train(["a red ring above a blue square", "a green star"] * 3, 280)
    model = ModelConfig(hidden_size=32, text_layers=1, decoder_layers=1, intermediate_size=64, max_tokens=16,
                        vocab_size=tokenizer.vocab_size, memory_slots=8)
    vision = VisionConfig(image_size=32, tower=TOWER)
    save_model(BitGen(model, vision), str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps({"model": to_dict(model), "vision": to_dict(vision)}))
    Processor(tokenizer, vision, 16).save(folder)
    values = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(values | {"vision": to_dict(vision), "model": to_dict(model)}))
    return folder


def code_of(text):
    blocks = re.findall(r"^```python\n(.+?)^```$", text, re.M | re.S)
    assert len(blocks) == 1
    return blocks[0]


def test_the_code_runs_as_printed_against_the_folder(run, capsys):
    assert main(["card", str(run)]) == 0
    capsys.readouterr()
    exec(code_of((run / "README.md").read_text()), {})
    cosines, matches, captions = capsys.readouterr().out.splitlines()
    assert len(re.findall(r"-?\d\.\d+", cosines)) == 2 and len(re.findall(r"\d\.\d+", matches)) == 2
    assert captions.startswith("['")


def test_the_code_runs_as_printed_against_the_hub(run, hub, capsys):
    text = card.write(run, repo="org/name").read_text()
    hub.seed("org/name", {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()})
    printed = code_of(hub.files("org/name")["README.md"].decode())
    assert printed == code_of(text) and "bitgen.load('org/name')" in printed
    exec(printed, {})
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert any(method == "GET" and "model.safetensors" in path for _, method, path, _ in hub.requests)


# Bad input ------------------------------------------------------------------------------------------------


def test_a_folder_without_a_run_is_named(tmp_path, capsys):
    assert main(["card", str(tmp_path / "gone")]) == 65
    assert "run.json is missing" in capsys.readouterr().err
    (tmp_path / "run.json").write_text('{"sede": 1}')
    with pytest.raises(ValueError, match="run.json: unknown setting 'sede'; did you mean 'seed'"):
        read(tmp_path)


@pytest.mark.parametrize("file", ["test.json", "run_facts.json", "accounting.json", "health.json", "metrics.jsonl",
                                  "checkpoint-748/MANIFEST.json"])
@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "null"])
def test_a_damaged_file_is_a_missing_one(tmp_path, file, content):
    folder = written(tmp_path / "run")
    (folder / file).write_text(content)
    assert "unknown" in told(folder).lower() or file == "test.json"


def test_the_card_is_replaced_whole(tmp_path, monkeypatch):
    folder = written(tmp_path / "run")
    before = card.write(folder).read_text()
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG") and "](curves.png)" in before
    monkeypatch.setattr(card, "render", lambda *_: (_ for _ in ()).throw(OSError(28, "no space")))
    with pytest.raises(OSError):
        card.write(folder)
    assert (folder / "README.md").read_text() == before
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_the_card_of_a_run_that_is_pushed_by_hand_loads_it_from_there(hub, tmp_path):
    """Trained without a Hub: until then the card named the folder."""
    run = written(tmp_path / "run")
    checkpoint.save(run, 800, {name: lambda path: path.write_bytes(b"new") for name in ROOT})
    assert push_run(run, "org/name").complete
    assert "bitgen.load('org/name')" in hub.files("org/name")["README.md"].decode()
