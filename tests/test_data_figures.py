"""Figures of a data set: what is drawn is what was counted."""

import numpy as np
import pytest

from bitgen import data_figures


def test_compositions_show_each_count_once_and_leave_empty_what_never_occurs():
    counts = {"Training": np.array([[3, 0, 5], [7, 11, 0]]), "Test": np.array([[0, 2, 0], [0, 0, 4]])}
    figure = data_figures.compositions(counts, ["red", "blue"], ["ring", "star", "heart"])
    training, test = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Training", "Test"]
    for axes, table in ((training, counts["Training"]), (test, counts["Test"])):
        shown = {tuple(map(int, text.get_position()[::-1])): text.get_text() for text in axes.texts}
        assert shown == {place: str(table[place]) for place in np.ndindex(table.shape) if table[place]}
        assert [label.get_text() for label in axes.get_yticklabels()] == ["red", "blue"]
    figure.canvas.draw()


def test_compositions_want_tables_of_the_named_shape():
    with pytest.raises(ValueError, match=r"expected tables of \(1, 2\), got \{'Test': \(2, 1\)\}"):
        data_figures.compositions({"Test": np.ones((2, 1))}, ["red"], ["ring", "star"])
    with pytest.raises(ValueError, match="none"):
        data_figures.compositions({}, ["red"], ["ring"])


def test_lengths_are_counted_and_their_mean_is_marked():
    figure = data_figures.lengths({"Words of a caption": [4, 4, 5, 9]})
    (axes,) = figure.axes
    bars = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in axes.patches}
    assert bars == {4: 2, 5: 1, 9: 1} and axes.get_xlabel() == "words in a caption"
    assert axes.get_legend_handles_labels()[1] == ["mean 5.5"]
    with pytest.raises(ValueError, match="nothing to count"):
        data_figures.lengths({"Words": []})
