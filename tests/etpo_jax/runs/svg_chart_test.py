"""Charts are well-formed and put values where the axes say."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from etpo_jax.runs.svg_chart import Line, line_chart, stacked_bars, ticks


def _label_positions(root: ElementTree.Element, anchor: str) -> dict[str, float]:
    """Axis label -> its place along that axis; labels of y end at theirs, those of x centre."""
    axis = "y" if anchor == "end" else "x"
    return {
        text.text or "": float(text.attrib[axis]) - (4 if axis == "y" else 0)
        for text in root.iter("text")
        if text.attrib["text-anchor"] == anchor
    }


def test_points_lie_where_the_labels_are() -> None:
    x = np.array([10.0, 20.0])
    root = ElementTree.fromstring(
        line_chart(x, [Line("a", "s0", np.array([0.2, 0.8]))], x_label="steps")
    )
    (path,) = [p for p in root.iter("path") if p.attrib["class"] == "line s0"]
    points = re.findall(r"[ML]([\d.]+) ([\d.]+)", path.attrib["d"])
    at_x, at_y = _label_positions(root, "middle"), _label_positions(root, "end")
    assert [float(p[0]) for p in points] == pytest.approx([at_x["10"], at_x["20"]], abs=0.1)
    assert [float(p[1]) for p in points] == pytest.approx([at_y["0.2"], at_y["0.8"]], abs=0.1)


def test_nan_is_a_gap_and_a_lone_point_is_drawn() -> None:
    y = np.array([1.0, np.nan, 2.0, 3.0])
    root = ElementTree.fromstring(
        line_chart(np.arange(1.0, 5.0), [Line("a", "s0", y)], x_label="steps")
    )
    (path,) = [p for p in root.iter("path") if p.attrib["class"] == "line s0"]
    assert re.sub(r"[\d. ]", "", path.attrib["d"]) == "ML"
    (dot,) = root.iter("circle")
    assert float(dot.attrib["cx"]) == pytest.approx(_label_positions(root, "middle")["1"], abs=0.1)
    readouts = json.loads(root.attrib["data-readouts"])
    assert [text for _, text in readouts] == ["1: a 1", "2: a -", "3: a 2", "4: a 3"]


def test_long_curves_are_thinned_with_their_ends_kept() -> None:
    x = np.arange(1.0, 5001.0)
    root = ElementTree.fromstring(line_chart(x, [Line("a", "s0", x)], x_label="steps"))
    readouts = json.loads(root.attrib["data-readouts"])
    assert len(readouts) == 400
    assert readouts[0][1].startswith("1:")
    assert readouts[-1][1].startswith("5000:")


@pytest.mark.parametrize("y", [[np.nan], [3.0], [0.0, 0.0], [np.inf, 1.0], [1e-9, 1e9]])
def test_degenerate_values_make_a_chart(y: list[float]) -> None:
    values = np.array(y)
    x = np.arange(1.0, len(y) + 1)
    text = line_chart(x, [Line("a", "s0", values)], x_label="steps", y_range=(0.0,))
    ElementTree.fromstring(text)
    assert "nan" not in text
    assert "inf" not in text


def test_bars_stack_to_their_sum() -> None:
    layers = [
        Line("a", "s0", np.array([0.25, 0.0])),
        Line("<b>", "s1", np.array([0.5, 1.0])),
    ]
    root = ElementTree.fromstring(stacked_bars(np.array([0.0, 8.0, 16.0]), layers, x_label="steps"))
    bars = [(r.attrib["class"], float(r.attrib["height"])) for r in root.iter("rect")]
    full = bars[-1][1]
    assert bars == [
        ("s0", pytest.approx(full / 4, abs=0.1)),
        ("s1", pytest.approx(full / 2, abs=0.1)),
        ("s1", full),
    ]
    first, second = list(root.iter("rect"))[:2]
    bottom = float(second.attrib["y"]) + float(second.attrib["height"])
    assert bottom == pytest.approx(float(first.attrib["y"]), abs=0.15)
    assert [text for _, text in json.loads(root.attrib["data-readouts"])] == [
        "to 8: a 25%, <b> 50%",
        "to 16: <b> 100%",
    ]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-0.3, 0.9, [-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0]),
        (0.0, 480.0, [0, 100, 200, 300, 400, 500]),
        (0.0, 0.0, [-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6]),
        (19.4, 31.7, [17.5, 20.0, 22.5, 25.0, 27.5, 30.0, 32.5]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)
