"""Figures have their size in print, embed their fonts, and are the same bytes from the same data."""

import matplotlib
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch

from sp import figures, files

matplotlib.use("agg")
TABLE = pd.DataFrame(
    [("Adam", "final_1", 0.5, 0.4, 0.6), ("Adam + replay", "final_1", 0.9, 0.8, 0.95)],
    columns=["arm", "metric", "mean", "low", "high"],
)


def saved(folder, monkeypatch):
    monkeypatch.setenv("SP_FIGURES", str(folder))
    fig = figures.interval_plot(TABLE, {"final_1": "Task A"}, "Accuracy")
    figures.save(fig, "plot", TABLE)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_figure_leaves_as_pdf_png_and_csv_with_the_same_bytes_each_time(tmp_path, monkeypatch):
    first, second = (saved(tmp_path / name, monkeypatch) for name in "ab")
    assert sorted(first) == ["plot.csv", "plot.pdf", "plot.png"] and first == second
    assert b"/Type3" not in first["plot.pdf"]
    height, width, _ = matplotlib.image.imread(tmp_path / "a" / "plot.png").shape
    assert (width, height) == (975, 282)  # 3.25 by 0.94 inches at 300 dpi
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a" / "plot.csv"), TABLE)


def test_unknown_widths_are_an_error():
    with pytest.raises(ValueError, match="width must be one of 'column', 'page', got 'poster'"):
        figures.figure("poster")


def test_a_method_keeps_its_colour_in_all_its_variants():
    assert figures.colour("Adam + replay") == figures.colour("Adam") != figures.colour("SGD")


def test_folders_are_found_from_the_notebooks_and_named_by_the_environment(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.delenv("SP_FIGURES", raising=False)
    monkeypatch.chdir(tmp_path / "notebooks")
    assert files.folder("figures") == tmp_path / "figures"
    monkeypatch.setenv("SP_FIGURES", "/elsewhere")
    assert str(files.folder("figures")) == "/elsewhere"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomically(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match=r"No space left.*free some disk space"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_heat_maps_share_one_scale_and_print_small_matrices():
    small, large = np.full((2, 2), np.nan), np.zeros((12, 12))
    small[0, 0] = 0.987
    fig = figures.heat_maps({"small": small, "large": large}, "Accuracy", "After", "On")
    first, second = fig.axes[:2]
    assert [text.get_text() for text in first.texts] == [".99"] and not second.texts
    assert {ax.images[0].get_clim() for ax in (first, second)} == {(0, 1)}
    assert first.images[0].get_extent()[:2] == [0.5, 2.5]  # tasks are counted from 1


def test_variants_of_a_method_share_its_colour_and_differ_in_dashes():
    rows = [(arm, x, x / 4) for arm in ("Coincidence", "Coincidence, wide", "Adam") for x in range(4)]
    fig = figures.line_panels(pd.DataFrame(rows, columns=["arm", "x", "y"]), "x", {"y": "Title"}, ("x", "y"))
    lines = fig.axes[0].get_lines()[:3]  # without the proxies of the legend
    assert [line.get_color() for line in lines] == [
        figures.colour(arm) for arm in ("Coincidence", "Coincidence", "Adam")
    ]
    assert lines[0].get_linestyle() != lines[1].get_linestyle() and lines[0].get_linestyle() == lines[2].get_linestyle()


def test_gates_spectra_and_weights_have_a_panel_for_each_layer_stream_and_unit():
    gates = [(step, layer, q, q) for step in (1, 2) for layer in (1, 2, 3) for q in (0.1, 0.5, 0.9)]
    fig = figures.gate_bands(pd.DataFrame(gates, columns=["step", "layer", "quantile", "gate"]), [1, 2])
    assert [ax.get_title() for ax in fig.axes] == ["Layer 1", "Layer 2", "Layer 3"]
    spectrum = pd.DataFrame({"task": [1, 1, 2, 2], "direction": [1, 2, 1, 2], "weight": [1.0, 0.1, 2.0, 0.2]})
    fig = figures.spectra({"Split": spectrum, "Permuted": spectrum})
    assert [ax.get_title() for ax in fig.axes] == ["Split", "Permuted"]
    fig = figures.weight_images({"mean": torch.ones(1, 6), "raw": torch.randn(4, 6)}, (2, 3), 4)
    assert [len(ax.images) for ax in fig.axes] == [1, 0, 0, 0, 1, 1, 1, 1]
