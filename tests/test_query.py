"""The encoder is the model, by the command line too, and its fingerprint follows what makes features."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TOWER, tiny_model
from painted import COLOUR_PAIRS, painted

from bitgen import cli
from bitgen.config import VisionConfig
from bitgen.export import export
from bitgen.index import Index
from bitgen.processing import Processor
from bitgen.query import Encoder, fingerprint
from bitgen.tokenizer import Tokenizer

pytest.importorskip("faiss")


@pytest.fixture(scope="module")
def tiny():
    tokenizer = Tokenizer.train(["red blue green", "a picture"], 300)
    model = tiny_model(vocab_size=tokenizer.vocab_size, gates=0.5)
    return model, Processor(tokenizer, VisionConfig(image_size=32), 16)


def test_an_encoder_is_the_model(tiny, monkeypatch):
    model, processor = tiny
    encoder, texts = Encoder(*tiny), ["a red", "green picture"]
    images = [painted("red", "blue"), painted("green", "red")]
    inputs = processor(images=images, text=texts)
    with torch.no_grad():
        assert encoder.text(texts) == pytest.approx(
            model.encode_text(inputs["input_ids"], inputs["attention_mask"]).numpy(), abs=1e-6)
        features = model.encode_image(inputs["pixel_values"]).numpy()
        match = model.match(**inputs).numpy()
    assert encoder.images(images) == pytest.approx(features, abs=1e-6)
    monkeypatch.setattr("bitgen.matching.TAUGHT", 9.0)
    found = encoder.evidence(images, texts)
    assert found.match.numpy() == pytest.approx(match, abs=1e-5)
    one_image, one_text = encoder.evidence(images[:1], texts), encoder.evidence(images, texts[:1])
    for pair, image, text in zip(found, one_image, one_text):
        assert pair[0].item() == pytest.approx(image[0].item(), abs=1e-4) == text[0].item()
        assert pair[1].item() != image[1].item() or pair is found.blind
    with pytest.raises(ValueError, match="2 images and 3 texts"):
        encoder.evidence(images, ["a", "b", "c"])
    assert one_image.blind[1] == pytest.approx(found.blind[1].item(), abs=1e-4)


def test_an_index_holds_what_the_encoder_says(tmp_path, tiny):
    for i, (a, b) in enumerate(COLOUR_PAIRS):
        painted(a, b).resize((90, 70)).save(tmp_path / f"{i}.jpg")
    encoder = Encoder(*tiny)
    index = Index.build(tmp_path / "index", tmp_path, encoder, dtype="float32", batch_size=3)
    expected = encoder.images(sorted(tmp_path.glob("*.jpg")))
    assert index.features(index.ids()) == pytest.approx(expected, abs=1e-5)


def test_the_fingerprint_follows_what_makes_features(tiny):
    model, processor = tiny
    known = fingerprint(model, processor)
    other = tiny_model(vocab_size=model.config.vocab_size, gates=0.5)
    assert fingerprint(other, processor) == known
    with torch.no_grad():
        next(other.fusion.parameters()).add_(1)
        next(other.decoder.parameters()).add_(1)
        assert fingerprint(other, processor) == known, "matching and captions have no part in features"
        for part in (other.vision, other.text, other.itc_image, other.itc_text, other.project, other.norm_image):
            weight = next(part.parameters())
            weight.view(-1)[0] += 1e-4
            assert fingerprint(other, processor) != known
            weight.view(-1)[0] -= 1e-4
    assert fingerprint(tiny_model(vocab_size=model.config.vocab_size, dropout=0.3, memory_slots=0), processor) == known
    assert fingerprint(tiny_model(vocab_size=model.config.vocab_size, pooling="first"), processor) != known
    assert fingerprint(same_weights_with(model, num_heads=2), processor) != known
    assert fingerprint(same_weights_with(model, ternary=True), processor) != known
    for change, tokens in (({"mean": (0.5, 0.5, 0.4)}, 16), ({"std": (0.2, 0.2, 0.3)}, 16), ({"image_size": 40}, 16),
                           ({}, 12)):
        changed = Processor(processor.tokenizer, VisionConfig(**{"image_size": 32, **change}), tokens)
        assert fingerprint(model, changed) != known, (change, tokens)
    heads = same_weights_with(model)
    heads.vision_config = replace(heads.vision_config, tower=TOWER | {"num_attention_heads": 4})
    assert fingerprint(heads, processor) != known


def same_weights_with(model, **changes):
    """A model of other settings with all the weights of `model`."""
    other = tiny_model(vocab_size=model.config.vocab_size, **changes)
    other.load_state_dict(model.state_dict())
    return other


# Exports and commands -------------------------------------------------------------------------------------


def test_the_export_holds_everything(tmp_path, index):
    pq = pytest.importorskip("pyarrow.parquet")
    index.remove("black black")
    assert export(index.store, tmp_path / "out" / "pictures.parquet") == 63
    table = pq.read_table(tmp_path / "out" / "pictures.parquet")
    assert table["id"].to_pylist() == index.ids() and table.schema.metadata[b"model"].decode() == index.fingerprint
    assert np.stack(table["feature"].to_numpy()) == pytest.approx(index.features(index.ids()))
    row = table.to_pylist()[5]
    assert row["captions"] == index.item(row["id"]).captions and row["tags"] == index.item(row["id"]).tags
    assert export(index.store, tmp_path / "captions.parquet", captions=True) == 126
    captions = pq.read_table(tmp_path / "captions.parquet").to_pylist()
    hits = index.search(np.array([captions[7]["feature"]]), k=1, captions=True)
    assert hits.scores[0][0] == pytest.approx(1, abs=2e-3)
    assert captions[7]["caption"] == index.item(captions[7]["id"]).captions[captions[7]["number"]]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["pictures.parquet"]


def test_the_export_tells_what_is_known_of_a_file_and_how_features_are_compared(tmp_path, painter):
    pq = pytest.importorskip("pyarrow.parquet")
    painted("red", "blue").resize((30, 20)).save(tmp_path / "a.png")
    export(Index.build(tmp_path / "index", [tmp_path / "a.png"], painter).store, tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.metadata[b"metric"] == b"cosine"
    known = {key: value for key, value in table.to_pylist()[0].items() if key in ("width", "height", "path")}
    assert known == {"width": 30, "height": 20, "path": str(tmp_path / "a.png")}


def test_an_export_that_fails_leaves_nothing(tmp_path, index):
    pytest.importorskip("pyarrow")
    with open(index.folder / "images.features", "r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match="the file was cut off"):
        export(index.store, tmp_path / "out" / "pictures.parquet")
    assert not list((tmp_path / "out").iterdir())


def test_the_command_line(tmp_path, tiny, capsys):
    from safetensors.torch import save_model

    from bitgen.config import to_dict

    model, processor = tiny
    run, photos, out = tmp_path / "run", tmp_path / "photos", str(tmp_path / "index")
    run.mkdir()
    photos.mkdir()
    save_model(model, str(run / "model.safetensors"))
    config = {"model": to_dict(model.config), "vision": to_dict(model.vision_config)}
    (run / "config.json").write_text(json.dumps(config))
    processor.save(run)
    for a, b in COLOUR_PAIRS:
        painted(a, b).save(photos / f"{a}.png")
    (photos / "broken.png").write_bytes(b"no")
    assert cli.main(["index", str(photos), "--checkpoint", str(run), "--out", out]) == 0
    said = capsys.readouterr()
    assert "8 images, 0 captions, 1 unreadable" in said.out and "skipped broken.png" in said.err
    assert cli.main(["search", out, "--image", str(photos / "cyan.png"), "--k", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split("\t") == ["1.000", "cyan.png"]
    assert cli.main(["search", out, "a red", "--minus", "green", "--weights", "1", "0.2", "--where", "id=c*"]) == 0
    assert capsys.readouterr().out.strip().endswith("cyan.png")
    assert cli.main(["search", out, "a red picture", "--rerank", "--k", "3"]) == 0
    assert all(len(line.split("\t")) == 4 for line in capsys.readouterr().out.splitlines())
    assert cli.main(["index", "remove", out, "cyan.png"]) == 0 and len(Index.open(out)) == 7
    (photos / "red.png").unlink()
    build = ["index", str(photos), "--checkpoint", str(run), "--out", out]
    assert cli.main(build) == 0 and "6 images" in (said := capsys.readouterr()).out and "1 stay out" in said.err
    assert cli.main(["index", "restore", out, "cyan.png"]) == cli.main(build) == 0 and len(Index.open(out)) == 7
    capsys.readouterr()
    assert cli.main(["search", out, "a red", "--threshold", "1.01"]) == 0
    assert capsys.readouterr() == ("", "nothing found\n")
    for arguments, message in ((["search", out], "nothing to look for"),
                               (["search", out, "a", "--weights", "1", "2"], "2 for 1"),
                               (["search", out, "a", "--where", "red"], "KEY=VALUE"),
                               (["search", out, "a", "b", "--rerank"], "mixture"),
                               (["search", out, "a circle", "--captions"], "this index has no captions"),
                               (["search", out, "--image", str(photos / "blue.png"), "--captions", "--rerank"],
                                "this index has no captions"),
                               (["search", out, "a", "--threshold", "nan"], "threshold: expected a cosine, got nan"),
                               (["search", out, ""], "a blank says nothing"),
                               (["search", out, "a", "--minus", " \t"], "a blank says nothing"),
                               (["index", "restore", out, "blue.png"], "'blue.png' was not removed"),
                               (["search", str(photos), "a"], "no index here")):
        assert cli.main(arguments) == cli.INPUT
        assert message in capsys.readouterr().err
