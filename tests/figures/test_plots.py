"""Plots show what is in their table: panels, methods, variants, means and intervals."""

from functools import partial
from itertools import pairwise

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from sp import figures
from sp.figures import comparing, inside, kit
from sp.lab import metrics

matplotlib.use("agg")
canvas = partial(figures.figure, "column")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_heat_maps_share_one_scale_and_print_small_matrices():
    rows = [("small", 1, 1, 0.98), ("small", 1, 1, 0.994), ("small", 2, 2, np.nan)]
    rows += [("large", i, j, 0.0) for i in range(1, 13) for j in range(1, 13)]
    table = pd.DataFrame(rows, columns=["method", "after", "on", "accuracy"])
    labels = ["Accuracy", "After", "On"]
    fig = comparing.heat_maps(canvas, table, {"small": "Small", "large": "Large"}, "accuracy", labels)
    first, second = fig.axes[:2]
    assert [text.get_text() for text in first.texts] == [".99"] and not second.texts  # the mean over what repeats
    assert {ax.images[0].get_clim() for ax in (first, second)} == {(0, 1)}
    assert [tick.get_text() for tick in second.get_yticklabels()] == ["1", "5", "10", "12"]  # counted from 1, down
    assert second.yaxis_inverted()
    small = table[table.method == "small"].assign(accuracy=[0.004, 0.006, 1.0])
    fig = comparing.heat_maps(canvas, small, {"small": ""}, "accuracy", labels, smallest=0.001)
    assert [text.get_text() for text in fig.axes[0].texts] == [".005", "1"]
    assert fig.axes[0].images[0].norm(0.1) == pytest.approx(2 / 3)


def test_variants_of_a_method_share_its_colour_and_marker_and_differ_in_dashes():
    rows = [(method, x, x / 4) for method in ("Coincidence", "Coincidence + replay", "Adam") for x in range(4)]
    table = pd.DataFrame(rows, columns=["method", "x", "y"])
    fig = comparing.line_panels(canvas, table, "x", {"y": ""}, ("x", "y"), across=0.5)
    first, second, third, _ = fig.axes[0].get_lines()
    assert [(line.get_color(), line.get_marker()) for line in (first, third)] == [
        figures.look("Coincidence"),
        figures.look("Adam"),
    ]
    assert (first.get_color(), first.get_marker()) == (second.get_color(), second.get_marker())
    assert first.get_linestyle() == third.get_linestyle() != second.get_linestyle()
    assert second.get_markerfacecolor() == "white" != first.get_markerfacecolor()


def test_any_number_of_other_methods_is_told_apart():
    styles = kit.line_styles(list("abcdefghijklm"))
    assert len({(style["marker"], style["linestyle"]) for style in styles.values()}) == 13


def test_a_method_without_values_leaves_the_others_to_be_seen():
    table = pd.DataFrame({"method": ["a", "a", "b", "b"], "x": [1, 2, 1, 2], "y": [0.1, 0.2, np.nan, np.nan]})
    fig = comparing.line_panels(canvas, table, "x", {"y": ""}, ("x", "y"))
    assert [line.get_ydata().tolist() for line in fig.axes[0].get_lines()] == [[0.1, 0.2], []]
    rows = pd.DataFrame({"method": ["a", "b"], "metric": "m", "mean": np.nan, "low": np.nan, "high": np.nan})
    fig = comparing.interval_plot(canvas, rows, {"m": ""}, "m")
    assert [tick.get_text() for tick in fig.axes[0].get_yticklabels()] == ["a", "b"]


def test_lines_show_the_mean_and_the_interval_of_sp_metrics_or_those_of_the_table():
    raw = pd.DataFrame({"method": "Adam", "x": np.repeat([1, 2], 6), "seed": [*range(6)] * 2})
    raw["y"] = np.random.default_rng(0).random(12)
    summary = metrics.summarise(raw, ["x"], "y")
    for table, column in ((raw, "y"), (summary.assign(method="Adam"), "mean")):
        fig = comparing.line_panels(canvas, table, "x", {column: ""}, ("x", "y"))
        (line,), (band,) = fig.axes[0].get_lines(), fig.axes[0].collections
        assert line.get_ydata() == pytest.approx(summary["mean"])
        ends = band.get_paths()[0].vertices[:, 1]
        assert {*summary.low, *summary.high} <= {*ends}


def test_a_shared_axis_with_free_ends_holds_the_lines_of_every_panel():
    table = pd.DataFrame({"x": [0, 1], "method": "Adam", "high": [10.0, 15.0], "low": [7.0, 9.0]})
    for limits in ((None, None), (0, None)):
        fig = comparing.line_panels(canvas, table, "x", {"high": "", "low": ""}, ("x", "y"), limits=limits)
        low, high = fig.axes[1].get_ylim()
        assert low <= 7 and high >= 15 and fig.axes[0].get_ylim() == (low, high)


def test_a_dot_plot_leaves_out_what_an_method_did_not_run():
    rows = [("Adam", "a", 0.5), ("Adam", "b", 0.4), ("Ridge", "b", 0.9)]
    table = pd.DataFrame(rows, columns=["method", "stream", "mean"]).assign(metric="m", low=0.3, high=0.95)
    other = table.assign(metric="other", method="SGD")
    options = {"panels": {"a": "A", "b": "B"}, "label": "x", "panel": "stream", "metric": "m"}
    fig = comparing.interval_plot(canvas, pd.concat([table, other]), **options)
    assert [len(ax.get_lines()) for ax in fig.axes] == [2, 4]  # a line and a dot each
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == ["Adam", "Ridge"]


@pytest.mark.parametrize(
    "name", ["Lion", "A name of exactly 28 letters", "another_run_of_the_lion_optimizer, with warm-up"]
)
def test_names_of_any_length_leave_room_for_the_dots(name):
    rows = [(method, metric, 0.5) for method in ("Adam", name) for metric in ("first", "second")]
    table = pd.DataFrame(rows, columns=["method", "metric", "mean"]).assign(low=0.4, high=0.6)
    panels = {"first": "Final accuracy", "second": "Accuracy right after each task"}
    fig = comparing.interval_plot(canvas, table, panels, "Accuracy")
    fig.canvas.draw()
    above, below = (text.get_window_extent() for text in fig.axes[0].get_yticklabels())
    assert above.y0 > below.y1 and below.x0 >= 0
    for ax in fig.axes:
        assert ax.get_window_extent().height > 0.2 * fig.dpi and ax.title.get_window_extent().y1 <= fig.bbox.height + 1


def test_a_ranking_names_each_method_at_its_dot_and_colours_those_that_are_asked_for_with_replay_open():
    rows = [("a", "Adam", 0.5), ("a", "Ridge", 0.9), ("a", "Adam + replay", 0.7), ("b", "Ridge", 0.2)]
    table = pd.DataFrame(rows, columns=["stream", "method", "mean"]).assign(low=lambda t: t["mean"] - 0.1)
    table["high"] = table["mean"] + 0.1
    fig = comparing.ranking(canvas, table, {"a": "A", "b": "B"}, "x", ["Adam"])
    first, second = fig.axes
    assert [text.get_text() for text in first.texts] == ["Ridge", "Adam + replay", "Adam"]
    assert [text.get_text() for text in second.texts] == ["Ridge"]
    inks = [text.get_color() for text in first.texts]
    assert inks[1] == inks[2] == figures.look("Adam")[0] != inks[0]
    faces = [line.get_markerfacecolor() for line in first.get_lines() if line.get_marker() != "None"]
    assert faces == [comparing.PALE, "white", figures.look("Adam")[0]]
    assert np.diff(second.get_xlim()) > 0.2 and second.get_xlim()[1] < 0.5  # the axis is as wide as what it shows


def test_lines_are_named_beside_the_last_panel_without_overlap_where_there_is_room():
    rows = [(name, x, y) for name, y in (("Adam", 0.50), ("SGD", 0.505), ("Ridge", 0.9)) for x in (1, 2)]
    table = pd.DataFrame(rows, columns=["method", "x", "y"])
    fig = comparing.line_panels(canvas, table, "x", {"y": ""}, ("x", "y"))
    names = fig.axes[0].texts
    fig.canvas.draw()
    assert [name.get_text() for name in names] == ["Ridge", "SGD", "Adam"] and not fig.legends
    boxes = [name.get_window_extent() for name in names]
    assert all(above.y0 >= below.y1 - 1 for above, below in pairwise(boxes))
    fig = comparing.line_panels(canvas, table.replace("Ridge", "Ridge, of a name that is long"), "x", {"y": ""}, "xy")
    assert len(fig.legends) == 1 and not fig.axes[0].texts
    fig = comparing.line_panels(canvas, table.replace("SGD", "Adam, wide"), "x", {"y": ""}, "xy")
    assert len(fig.legends) == 1, "only dashes tell the two apart, which a name does not show"


def test_a_task_that_begins_is_marked_where_the_last_one_ended():
    rows = [("Adam", task, step, 0.5) for task, steps in ((1, (1, 2)), (2, (3, 4))) for step in steps]
    table = pd.DataFrame(rows, columns=["method", "task", "step", "y"])
    fig = comparing.line_panels(canvas, table, "step", {"y": ""}, ("x", "y"), switch="task")
    assert fig.axes[0].get_lines()[-1].get_xdata() == [2, 2]
    assert fig.axes[0].texts[0].get_text() == "task B begins"


def test_gates_spectra_and_images_have_a_panel_for_each_layer_stream_and_unit():
    gates = [(step, step, layer, q, q) for step in (1, 2) for layer in (1, 2, 3) for q in (0.1, 0.5, 0.9)]
    fig = inside.gate_bands(canvas, pd.DataFrame(gates, columns=["step", "task", "layer", "quantile", "gate"]))
    assert [ax.get_title() for ax in fig.axes] == ["Layer 1", "Layer 2", "Layer 3"]
    spectrum = pd.DataFrame({"task": [1, 1, 2, 2], "direction": [1, 2, 1, 2], "weight": [1.0, 0.1, 2.0, 0.2]})
    both = pd.concat([spectrum.assign(stream=title) for title in ("Split", "Permuted")])
    assert [ax.get_title() for ax in inside.spectra(canvas, both).axes] == ["Split", "Permuted"]
    images = pd.DataFrame(np.random.default_rng(0).normal(size=(5, 6)), columns=map(str, range(6)))
    images["row"] = ["mean", *["raw"] * 4]
    fig = inside.image_rows(canvas, images, (2, 3), grey=["mean"])
    assert [len(ax.images) for ax in fig.axes[:8]] == [1, 0, 0, 0, 1, 1, 1, 1]
    assert fig.axes[8].get_ylabel() == "Share of the\nrow's largest"
    assert fig.axes[0].images[0].get_cmap().name == "gray_r"


def test_a_plane_joins_the_settings_of_a_method_at_their_means_and_names_some():
    rows = [("Adam", s, seed, s / 4 + seed / 100, 1 - s / 4) for s in (3, 1, 2) for seed in range(3)]
    rows += [("Coincidence", "inf", seed, 0.9, 0.8 + seed / 100) for seed in range(3)]
    table = pd.DataFrame(rows, columns=["method", "setting", "seed", "kept", "learnt"])
    fig = comparing.plane(canvas, table, "kept", "learnt", ("Kept", "Learnt"), named=["Coincidence"])
    ax = fig.axes[0]
    adam, coincidence = ax.get_lines()
    assert adam.get_xdata() == pytest.approx([0.76, 0.26, 0.51]) and adam.get_ydata() == pytest.approx(
        [0.25, 0.75, 0.5]
    )
    assert coincidence.get_ydata() == pytest.approx([0.81])
    assert [text.get_text() for text in ax.texts] == ["inf"]
    across, up = ax.collections[:2]
    assert up.get_segments()[0][0] == pytest.approx([0.76, 0.25]) and across.get_segments()[0][:, 0].std() > 0


def test_a_front_is_a_staircase_under_its_points():
    table = pd.DataFrame(
        {"method": "Adam", "old": [0.5, 0.2, 0.1], "new": [0.4, 0.9, 0.1], "front": [True, True, False]}
    )
    points, stairs = comparing.fronts(canvas, table, ("Old", "New")).axes[0].get_lines()
    assert len(points.get_xdata()) == 3 and stairs.get_xdata().tolist() == [0.2, 0.5]
    assert stairs.get_drawstyle() == "steps-pre"  # up to an old accuracy, the new one of its point can be had


def test_effects_that_are_open_are_pale():
    rows = [("s", "a", 0.05, 0.04, "better"), ("s", "b", 0.0, -0.1, "open"), ("s", "c", 0.0, -0.001, "no matter")]
    table = pd.DataFrame(rows, columns=["stream", "method", "mean", "low", "verdict"]).assign(high=0.1)
    fig = comparing.effect_plot(canvas, table, "Effect", 0.01, "Coincidence")
    assert [line.get_alpha() for line in fig.axes[0].get_lines()[1:]] == [1, 1, 0.35, 0.35, 1, 1]
