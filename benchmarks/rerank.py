"""What re-ranking should weigh: recall by weight of the matching head and of the decoder's words.

    python benchmarks/rerank.py runs/scenes --split val

Reads the first candidates of each query once and puts them in order by all weights of the grid. Prints two tables of
recall@1, words to images and images to words; choose on validation images, report on others.
"""

from __future__ import annotations

import measure
from measure import DEVICE

import bitgen
from bitgen.candidates import candidates
from bitgen.config import DataConfig
from bitgen.data import open_data
from bitgen.encoded import encode
from bitgen.matching import Weights
from bitgen.retrieval import rank_features

MATCH, WORDS, PRIOR = (0.0, 0.125, 0.25, 0.5), (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0), (0.0, 0.25, 0.5, 0.75, 1.0)


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("run", help="run folder, checkpoint folder or Hub id")
    parser.add_argument("--data", default="scenes")
    parser.add_argument("--split", default="val")
    parser.add_argument("--first", type=int, default=32, help="candidates of each query")
    options = parser.parse_args()
    where = measure.begin(None)
    model, processor = bitgen.load(options.run, device=DEVICE)
    data = open_data(DataConfig(root=options.data), options.split, processor.vision.image_size)
    gallery = encode(model, processor, data)
    i2t, t2i = rank_features(gallery.image_features, gallery.text_features, gallery.owner)
    texts, images = candidates(model, gallery, options.first)
    scale = model.scale().item()

    def recall(weights: Weights) -> str:
        both = images.reranked(t2i, scale, weights), texts.reranked(i2t, scale, weights)
        return " / ".join(f"{ranking.hits(1).mean():.3f}" for ranking in both)

    print(f"{options.run} on {options.data}/{options.split}, {len(gallery.indices)} images: recall@1 of words to "
          f"images / images to words; chance {1 / len(gallery.indices):.4f}\n")
    by_match = [[match, *(recall(Weights(match, words)) for words in WORDS)] for match in MATCH]
    by_prior = [[prior, *(recall(Weights(words=words, prior=prior)) for words in WORDS)] for prior in PRIOR]
    print(measure.table(["matching \\ words", *WORDS], by_match))
    print(measure.table(["prior \\ words", *WORDS], by_prior))
    measure.write(options.json, {"environment": where, "words": WORDS, "matching": by_match, "prior": by_prior})


if __name__ == "__main__":
    main()
