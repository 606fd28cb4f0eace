"""Charts put values where the axes say, and their SVG suits a page with other charts on it."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from etpo_jax.runs import charts
from etpo_jax.runs.charts import Line


def _svg(x: np.ndarray, lines: list[Line]) -> ElementTree.Element:
    figure, (axes,) = charts.figure(6, 3.5)
    charts.label(axes, x="steps", y="reward <unit>")
    charts.draw_lines(axes, x, lines)
    text = charts.to_svg(figure, charts.readouts(x, lines))
    # The page's HTML knows this name space; a reader of XML has to be told.
    return ElementTree.fromstring(text.replace("<svg", '<svg xmlns:xlink="x"', 1))


def _curves(root: ElementTree.Element, series: int) -> list[list[tuple[float, float]]]:
    """The points of each path in the colour of a series."""
    paths = [
        path.attrib["d"]
        for path in root.iter("path")
        if f"stroke: var(--c{series})" in path.attrib.get("style", "")
        and "fill: none" in path.attrib["style"]
    ]
    pairs = (re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path) for path in paths)
    return [[(float(a), float(b)) for a, b in points] for points in pairs]


def _label_positions(root: ElementTree.Element, anchor: str) -> dict[str, float]:
    """Tick label to its place along the x axis ("middle") or the y axis ("end")."""
    found = {}
    for text in root.iter("text"):
        style = text.attrib["style"]
        if f"text-anchor: {anchor}" in style and "transform" not in style:
            found[text.text or ""] = float(text.attrib["x" if anchor == "middle" else "y"])
    return found


def test_points_lie_where_the_labels_are() -> None:
    root = _svg(np.array([10.0, 20.0]), [Line("a", 0, np.array([0.2, 0.8]))])
    ((first, last),) = _curves(root, 0)
    at_x, at_y = _label_positions(root, "middle"), _label_positions(root, "end")
    assert [first[0], last[0]] == pytest.approx([at_x["10"], at_x["20"]], abs=0.1)
    # Labels of the y axis stand with their middle at their value.
    assert first[1] - last[1] == pytest.approx(at_y["0.2"] - at_y["0.8"], abs=0.1)
    assert {"steps", "reward <unit>"} <= {text.text for text in root.iter("text")}


def test_the_cursor_reads_out_the_points_of_the_curve() -> None:
    lines = [Line("a", 0, np.array([0.2, np.nan, 0.8])), Line("b", 1, np.arange(3.0))]
    root = _svg(np.array([10.0, 15.0, 20.0]), lines)
    readouts = json.loads(root.attrib["data-readouts"])
    assert [text for _, text in readouts] == ["10: a 0.2, b 0", "15: b 1", "20: a 0.8, b 2"]
    (points,) = _curves(root, 1)
    assert [x for x, _ in readouts] == pytest.approx([x for x, _ in points], abs=0.1)
    (cursor,) = [path for path in root.iter("path") if path.attrib.get("class") == "cursor"]
    top, bottom = map(float, re.findall(r"[\d.]+", cursor.attrib["d"])[1:])
    assert all(top <= y <= bottom for _, y in points)


def test_nan_is_a_gap_and_a_lone_point_a_dot() -> None:
    _, (axes,) = charts.figure(6, 3.5)
    y = np.array([1.0, np.nan, 2.0, 3.0, np.inf])
    charts.draw_lines(axes, np.arange(1.0, 6.0), [Line("a", 0, y)])
    curve, dots = axes.lines
    np.testing.assert_array_equal(curve.get_ydata(), [1, np.nan, 2, 3, np.nan])
    assert dots.get_xydata().tolist() == [[1.0, 1.0]]


def test_a_step_holds_until_the_next_x() -> None:
    root = _svg(np.array([0.0, 10.0]), [Line("best", 4, np.array([0.0, 1.0]), is_step=True)])
    ((start, corner, end),) = _curves(root, 4)
    assert corner == (end[0], start[1])


def test_long_curves_are_thinned_with_their_ends_kept() -> None:
    x = np.arange(1.0, 5001.0)
    _, (axes,) = charts.figure(6, 3.5)
    charts.draw_lines(axes, x, [Line("a", 0, x)])
    assert axes.lines[0].get_xdata()[[0, -1]].tolist() == [1, 5000]
    readouts = charts.readouts(x, [Line("a", 0, x)])
    assert len(readouts) == len(axes.lines[0].get_xdata()) == 400
    assert [place for place, _ in readouts[:: len(readouts) - 1]] == [1, 5000]


@pytest.mark.parametrize("y", [[np.nan], [3.0], [0.0, 0.0], [np.inf, 1.0], [1e-9, 1e9]])
def test_degenerate_values_make_a_chart(y: list[float]) -> None:
    root = _svg(np.arange(1.0, len(y) + 1), [Line("a", 0, np.array(y))])
    paths = " ".join(path.attrib.get("d", "") for path in root.iter("path"))
    assert "nan" not in paths
    assert "inf" not in paths


def test_colours_are_those_of_the_page_and_identifiers_are_shared_by_equal_things_only() -> None:
    def text(value: float) -> str:
        figure, (axes,) = charts.figure(6, 3.5)
        lines = [Line(str(i), i, np.array([value, i]), np.array([[0, 0], [i, i]])) for i in (0, 8)]
        charts.draw_lines(axes, np.array([0.0, 1.0]), lines)
        charts.legend(axes)
        return charts.to_svg(figure)

    one = text(1.0)
    assert not re.search(r"#(?!ffffff|000000)[0-9a-f]{6}\b", one)
    assert one.count("fill-opacity: 0.15") == 2
    assert "stroke-dasharray" in one
    assert one == text(1.0)
    definitions = [dict(re.findall(r'id="(\w+)"[^>]*>(.*?)</', text(v), re.DOTALL)) for v in (1, 2)]
    shared = definitions[0].keys() & definitions[1].keys()
    assert all(definitions[0][name] == definitions[1][name] for name in shared)


def test_bars_stack_to_their_sum() -> None:
    figure, (axes,) = charts.figure(6, 3.5)
    layers = [Line("a", 0, np.array([0.25, 0.0])), Line("b", 1, np.array([0.5, 1.0]))]
    charts.draw_bars(axes, np.array([0.0, 8.0, 16.0]), layers)
    charts.show_shares(axes)
    bars = [(bar.get_y(), bar.get_height()) for bar in axes.patches]
    assert bars == [(0, 0.25), (0, 0), (0.25, 0.5), (0, 1.0)]
    figure.canvas.draw()
    assert "100%" in [label.get_text() for label in axes.get_yticklabels()]


def test_a_smoothed_curve_has_its_raw_values_behind() -> None:
    raw, mean = charts.smoothed(np.arange(20.0), 2)
    assert raw.is_raw
    assert (mean.name, mean.series) == ("mean over 3 batches", 2)
    assert mean.y[10] == 10
    (alone,) = charts.smoothed(np.arange(5.0), 2)
    assert not alone.is_raw


def test_a_band_of_steps_has_corners_too() -> None:
    _, (axes,) = charts.figure(6, 3.5)
    y = np.array([0.0, 1.0])
    charts.draw_lines(axes, np.array([0.0, 10.0]), [Line("a", 0, y, np.array([y, y + 1]), False)])
    charts.draw_lines(
        axes, np.array([0.0, 10.0]), [Line("b", 1, y, np.array([y, y + 1]), False, True)]
    )
    sloped, stepped = (
        {tuple(point) for point in band.get_paths()[0].vertices} for band in axes.collections
    )
    assert (10.0, 0.0) in stepped - sloped


def test_shares_may_end_below_a_hundred_percent() -> None:
    figure, (axes,) = charts.figure(6, 3.5)
    charts.show_shares(axes, 0.02)
    figure.canvas.draw()
    assert axes.get_ylim()[1] == pytest.approx(0.0204)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(set(labels)) == len(labels)
