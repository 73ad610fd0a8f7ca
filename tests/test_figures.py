"""Figures have their size in print, embed their fonts, and are the same bytes from the same data."""

import matplotlib
import matplotlib.image
import pandas as pd
import pytest

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
