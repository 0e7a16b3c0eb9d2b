"""Figures: what they say is what they were given, no text is cut or overlaps, and a bad run looks bad."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bitgen import figures
from bitgen.figures import GREEN, GREY, Query

LONG = "a very long caption that goes on and on about a large striped purple triangle " * 10
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 3, 16, 16), dtype=np.uint8)


def drawn(figure):
    """The figure as (H, W, 4) pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def boxes(figure):
    """Bounding boxes, in pixels, of all non-empty texts of the figure itself."""
    drawn(figure)
    return {text.get_text(): text.get_window_extent() for text in figure.texts if text.get_text()}


def assert_texts_are_apart_and_inside(figure):
    found = boxes(figure)
    width, height = figure.bbox.size
    for text, box in found.items():
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text
        for other, second in found.items():
            assert text == other or not box.shrunk(0.95, 0.8).overlaps(second.shrunk(0.95, 0.8)), (text, other)


def rows():
    right = [False, True, False, False, False]
    return [Query("a red ring", PIXELS[:5], right, 2, "Captions: best"),
            Query(LONG, PIXELS[:5], [False] * 5, 4711, "Captions: worst"),
            Query("W" * 300, PIXELS[:5], [False] * 5, 12.5, "Captions: worst"),
            Query(PIXELS[0], ["a", LONG, LONG, "W" * 300, "e"], right, 2, "Images: best"),
            Query(PIXELS[1], ["f", "g", "h", "i", "j"], [False] * 5, 123456, "Images: worst")]


def test_retrievals_frame_the_right_answers_only():
    figure = figures.retrievals(rows()[:2], (1000, 5000))
    frames = [axes.spines["left"].get_edgecolor() for axes in figure.axes]
    from matplotlib.colors import to_rgba
    assert [frame == to_rgba(GREEN) for frame in frames] == [False, True] + [False] * 8
    texts = [text.get_text() for text in figure.texts]
    assert any("1,000 images and 5,000 captions" in text for text in texts)
    assert any("place 4,711" in text for text in texts)


def test_retrievals_mark_right_captions():
    texts = {text.get_text()[0]: text.get_color() for text in figures.retrievals(rows()[3:4]).texts if
             text.get_text()[:1].isdigit()}
    assert [texts[place] == GREEN for place in "12345"] == [False, True, False, False, False]


def test_texts_of_retrievals_are_apart_and_inside():
    assert_texts_are_apart_and_inside(figures.retrievals(rows(), (5000, 25000)))


def test_texts_of_a_contact_sheet_are_apart_and_inside():
    captions = [["a red ring"], [LONG], ["W" * 300], [], ["short"], [LONG.upper()], ["x"], ["y"]]
    figure = figures.contact_sheet(PIXELS, captions, columns=3)
    assert len(figure.axes) == 8
    assert_texts_are_apart_and_inside(figure)


def test_mathematics_and_other_scripts_are_plain_text():
    figure = figures.contact_sheet(PIXELS[:2], [["costs $5 and $x_{"], ["\\frac{ ^"]])
    assert drawn(figure).std() > 0
    assert "$5 and $x_{" in figure.texts[0].get_text().replace("\n", " ")


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("steps", [1, 5, 300])
def test_curves_have_chance_levels(steps):
    history = [{"step": 10 * t, "itc": 6 / t, "itc_chance": 5.6, "t2i": t / 400, "i2t": t / 500, "t2i_chance": 0.01,
                "i2t_chance": 0.01, "text": 2.0, "text_floor": 0.95} for t in range(1, steps + 1)]
    figure = figures.curves(history)
    drawn(figure)
    assert [axes.get_title("left") for axes in figure.axes] == ["Contrast (ITC)", "Text", "Retrieval in the batch"]
    for axes, name in zip(figure.axes, ("chance", "floor of the smoothed", "chance")):
        dashed = [line for line in axes.lines if line.get_color() == GREY]
        assert len(dashed) == 1 and dashed[0].get_label() == name
    assert figure.axes[0].lines[-1].get_ydata()[0] == 5.6


@pytest.mark.filterwarnings("error::UserWarning")
def test_curves_leave_out_what_is_not_finite_and_validation_steps():
    history = [{"step": 1, "itc": 5.0}, {"step": 2, "itc": float("nan")}, {"step": 2, "val/total": 3.0},
               {"step": 3, "itc": 4.0}]
    assert figures.curves(history).axes[0].lines[0].get_xdata().tolist() == [1, 3]
    figure = figures.curves([{"step": 1, "itc": float("inf")}])
    drawn(figure)
    assert figure.axes[0].get_legend().texts[0].get_text() == "loss: never finite"


def test_a_run_at_chance_lies_on_its_chance_level():
    axes = figures.curves([{"step": t, "itm_acc": 2 / 3, "itm_acc_chance": 2 / 3} for t in range(9)]).axes[0]
    assert np.allclose(axes.lines[0].get_ydata(), axes.lines[-1].get_ydata())


def test_recalls_draw_what_the_report_says():
    report = {f"{prefix}{way}_r{k}": level for prefix, level in (("", 0.5), ("rerank_", 0.25), ("chance_", 0.01))
              for way in ("t2i", "i2t") for k in (1, 5, 10)}
    figure = figures.recalls(report)
    drawn(figure)
    assert [bar.get_height() for bar in figure.axes[0].patches] == [50] * 3 + [25] * 3 + [1] * 3
    plain = figures.recalls({key: value for key, value in report.items() if "rerank" not in key})
    assert len(plain.axes[1].patches) == 6


@pytest.mark.parametrize("call, message", [
    (lambda: figures.retrievals([]), "no rows"),
    (lambda: figures.contact_sheet([], []), "0 images"),
    (lambda: figures.contact_sheet(PIXELS, [["a"]]), "8 images and 1"),
    (lambda: figures.contact_sheet(PIXELS[:1] / 255, [["a"]]), "expected uint8 .* float64"),
    (lambda: figures.curves([]), "none of .*'itc'"),
    (lambda: figures.recalls({"loss": 1.0}), "no t2i_r1"),
])
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_nothing_is_imported_or_set_before_a_figure_is_drawn():
    code = ("import sys, bitgen.figures as f; assert 'matplotlib' not in sys.modules\n"
            "f.curves([{'step': 1, 'itc': 2.0}])\n"
            "import matplotlib; assert 'matplotlib.pyplot' not in sys.modules\n"
            "assert matplotlib.rcParams['axes.spines.top']")
    subprocess.run([sys.executable, "-c", code], check=True)
