"""Figures have their size in print, embed their fonts, can be told apart, and are drawn again as the same bytes."""

import itertools
import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import matplotlib
import matplotlib.colors
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from colorspacious import cspace_convert
from matplotlib.text import Text

from sp import figures, files
from sp.plots import PLOTS
from sp.plots.kit import short

matplotlib.use("agg")
ROOT = Path(__file__).parent.parent
TABLE = pd.DataFrame(
    [("Adam", "final_1", 0.5, 0.4, 0.6, 3), ("Adam + replay", "final_1", 0.9, 0.8, 0.95, 3)],
    columns=["arm", "metric", "mean", "low", "high", "n"],
)
WORDS = {"question": "Which?", "caption": "Accuracy."}
OPTIONS = {"panels": {"final_1": "Task A"}, "label": "Accuracy"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SP_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setattr(figures, "_runs", {})
    yield tmp_path / "figures"
    plt.close("all")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def in_pdf(data: bytes) -> tuple[bytes, list[float]]:
    """Everything in a PDF, unpacked, and the sizes of its text."""
    parts = [data]
    for found in re.finditer(rb"obj\n(<<.*?>>)\nstream\n", data, re.DOTALL):
        if b"/FlateDecode" in found[1]:
            # Only its length tells where a stream ends: its last bytes may be the end of a line.
            length, elsewhere = re.search(rb"/Length (\d+)( 0 R)?", found[1]).groups()
            if elsewhere:
                length = re.search(rb"\n%s 0 obj\n(\d+)\n" % length, data)[1]
            parts.append(zlib.decompress(data[found.end() : found.end() + int(length)]))
    text = b"".join(parts)
    return text, [float(size) for size in re.findall(rb"/F\d+ ([\d.]+) Tf", text)]


def runs_in(code: str, folder: Path, hash_seed: str) -> None:
    environment = {**matplotlib.os.environ, "SP_FIGURES": str(folder), "PYTHONHASHSEED": hash_seed}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd=ROOT)


@pytest.mark.parametrize("last", [b"\r", b"\n", b"."])
@pytest.mark.parametrize("length", [b"%d", b"2 0 R"])
def test_a_stream_of_a_pdf_is_read_whatever_byte_it_ends_with(last, length):
    packed = [zlib.compress(b"/F1 7.5 Tf %c" % code) for code in range(256)]
    (stream,) = [data for data in packed if data.endswith(last)]
    head = b"1 0 obj\n<< /Length %s /Filter /FlateDecode >>\nstream\n" % length.replace(b"%d", b"%d" % len(stream))
    pdf = b"%s%s\nendstream\nendobj\n2 0 obj\n%d\nendobj\n" % (head, stream, len(stream))
    assert in_pdf(pdf)[1] == [7.5]


def test_a_figure_leaves_with_its_table_and_record_and_is_drawn_again_as_the_same_bytes(folder, tmp_path):
    fig = figures.draw(
        "interval_plot", "plot", TABLE, keys=["b", "a"], formats=("pdf", "png", "svg"), **WORDS, **OPTIONS
    )
    first = contents(folder)
    assert sorted(first) == ["plot.csv", "plot.json", "plot.pdf", "plot.png", "plot.svg"]
    assert fig.get_size_inches().tolist() == pytest.approx([3.25, 0.94])
    assert matplotlib.image.imread(folder / "plot.png").shape[:2] == (282, 975)  # at 300 dpi
    pd.testing.assert_frame_equal(pd.read_csv(folder / "plot.csv"), TABLE)
    record = json.loads(first["plot.json"])
    assert record["caption"] == "Accuracy. Mean and 95 % bootstrap interval over seeds, n = 3."
    assert record["provenance"]["experiments"] == ["a", "b"] and "torch" in record["provenance"]["versions"]
    for name in ("plot.pdf", "plot.png", "plot.svg"):
        assert b"experiments" in first[name] and b"Date" not in first[name], name
    code = "from sp.figures import redraw; redraw('plot', formats=('pdf', 'png', 'svg'))"
    for hash_seed in "12":
        runs_in(code, folder, hash_seed)
        assert contents(folder) == first


def test_a_figure_of_the_collection_is_drawn_again_without_pytorch(tmp_path):
    name = "01_forgetting_digits_curves"
    record = json.loads((ROOT / "figures" / f"{name}.json").read_text())
    code = (
        "import sys; from sp.__main__ import main\n"
        f"assert main(['paper', '{name}', '--to', r'{tmp_path}', '--format', 'pdf', 'png']) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    runs_in(code, ROOT / "figures", "0")
    if record["provenance"]["versions"]["matplotlib"] != matplotlib.__version__:
        pytest.skip("another matplotlib draws other bytes")
    for suffix in ("csv", "json", "pdf", "png"):
        committed = (ROOT / "figures" / f"{name}.{suffix}").read_bytes()
        assert (tmp_path / f"{name}.{suffix}").read_bytes() == committed, suffix


def test_journals_have_their_widths_and_unknown_ones_are_errors(folder):
    figures.draw("interval_plot", "plot", TABLE, **WORDS, **OPTIONS)
    fig = figures.redraw("plot", journal="nature", width="page", formats=["pdf"])
    assert fig.get_size_inches()[0] * 25.4 == pytest.approx(183)
    assert json.loads((folder / "plot.json").read_text())["journal"] == "nature"
    with pytest.raises(ValueError, match="width must be one of 'column', 'page', got 'poster'"):
        figures.figure("poster")
    with pytest.raises(ValueError, match=r"journal must be one of 'icml', 'neurips', .* got 'diary'"):
        figures.redraw("plot", journal="diary")
    with pytest.raises(ValueError, match=r"kind must be one of 'interval_plot', .* got 'pie'"):
        figures.draw("pie", "plot", TABLE, **WORDS)
    with pytest.raises(ValueError, match="formats must be some of pdf, png, svg, got gif"):
        figures.redraw("plot", formats=["gif"])
    with pytest.raises(
        FileNotFoundError, match=r"no figure '01_plot' .* similar: plot; make it with  python -m sp .*01_plot"
    ):
        figures.redraw("01_plot")


def test_refreshing_changes_no_commit_for_nothing(folder, monkeypatch):
    def drawn(data):
        figures.draw("interval_plot", "plot", data, formats=[], **WORDS, **OPTIONS)
        return json.loads((folder / "plot.json").read_text()).get("commit")

    commits = iter([None, "first", "second"])
    monkeypatch.setattr(figures, "commit", lambda: next(commits))
    assert drawn(TABLE) is None and drawn(TABLE) == "first" and drawn(TABLE) == "first"
    assert drawn(TABLE.assign(n=4)) == "second"


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SP_FIGURES")
    own = {"01_toy": {"dataset": "digits", "seeds": 3}, "02_toy": {"rate": 0.5, "units": [3, 4]}}
    Path("notebooks/parameters.json").write_text(json.dumps(own))
    return tmp_path


def provenance(path):
    return json.loads(path.with_suffix(".json").read_text())["provenance"]


def drawn(name, **options):
    figures.draw("interval_plot", name, TABLE, formats=[], **WORDS, **OPTIONS, **options)
    return figures.folder_of(name) / name


def test_own_parameters_leave_figures_where_they_were_with_all_parameters(project, capsys):
    figures.begin("01_toy", {"dataset": "mnist", "seeds": 3, "others": object()})
    assert drawn("01_toy_mnist") == project / "figures" / "01_toy_mnist"
    made = provenance(project / "figures" / "01_toy_mnist")
    assert made["parameters"] == {"dataset": "mnist", "seeds": 3}
    assert made["command"] == "python -m sp figures --dataset mnist notebooks/01_toy.ipynb"
    # A figure of no data set has the same record whichever its notebook ran on.
    made = provenance(drawn("01_toy_units"))
    assert made["parameters"]["dataset"] == "digits"
    assert made["command"] == "python -m sp figures notebooks/01_toy.ipynb"
    assert (
        provenance(drawn("01_toy_costs", command="python notebooks/studies bench"))["command"]
        == "python notebooks/studies bench"
    )
    assert figures.save_table(TABLE, "01_toy_mnist_all").parent == project / "figures"
    figures.begin("02_toy", {"rate": 0.5, "units": (3, 4)})
    assert provenance(drawn("02_toy"))["parameters"] == {"rate": 0.5, "units": [3, 4]}
    assert capsys.readouterr().out == ""


def test_other_parameters_never_touch_the_project_s_figures(project, monkeypatch, capsys):
    namespace = {"dataset": "mnist", "seeds": 4}
    figures.begin("01_toy", namespace)
    namespace["seeds"] = 3  # what is reassigned later is not what the notebook ran with
    folder = project / "build" / "figures" / "01_toy" / "dataset=mnist,seeds=4"
    assert str(folder) in capsys.readouterr().out
    assert drawn("01_toy_mnist").parent == figures.save_table(TABLE, "one_of_my_own").parent == folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "01_toy_mnist.csv",
        "01_toy_mnist.json",
        "one_of_my_own.csv",
    ]
    made = provenance(folder / "01_toy_mnist")
    assert made["parameters"] == {"dataset": "mnist", "seeds": 4}
    assert made["command"] == "python -m sp figures notebooks/01_toy.ipynb -p dataset mnist -p seeds 4"
    assert figures.stored("01_toy_mnist")[0]["provenance"] == made
    assert not (project / "figures").exists()

    # The next notebook in the same process has nothing of it, and the first one keeps it.
    figures.begin("02_toy", {"rate": 0.5, "units": [3, 4]})
    assert drawn("02_toy").parent == figures.folder_of("one_of_my_own") == project / "figures"
    assert figures.folder_of("01_toy_mnist") == folder
    figures.begin("01_toy", {"dataset": "digits", "seeds": 3})
    assert figures.folder_of("01_toy_digits") == project / "figures"
    # Names of figures do not tell it from digits.
    figures.begin("01_toy", {"dataset": "letters", "seeds": 3})
    assert figures.folder_of("01_toy_letters") == folder.parent / "dataset=letters"


def test_another_folder_for_figures_is_that_of_other_parameters_as_well(project, monkeypatch):
    monkeypatch.setenv("SP_FIGURES", str(project / "mine"))
    figures.begin("02_toy", {"rate": 0.5, "units": [3, 4]})
    assert figures.folder_of("02_toy") == project / "mine"
    figures.begin("02_toy", {"rate": 1, "units": [3, 4]})
    assert figures.folder_of("02_toy") == project / "mine" / "02_toy" / "rate=1.0"
    monkeypatch.setenv("SP_FIGURES", str(project / "grid" / "rate=1.0"))  # as a grid has it
    assert figures.folder_of("02_toy") == project / "grid" / "rate=1.0"
    with pytest.raises(ValueError, match="02_toy has no units: run the cell with its parameters before this one"):
        figures.begin("02_toy", {"rate": 1.0})


def test_names_say_notebook_data_set_and_command():
    assert files.made_from("02_consolidation_fashion_mnist_gate") == ("02_consolidation", "fashion_mnist")
    assert files.made_by("04_biology_tag") == "python -m sp figures notebooks/04_biology.ipynb"
    assert files.made_by("retention_mnist") == "python notebooks/studies results --dataset mnist"
    assert files.made_from("explore_gate_0") == (None, None) and files.made_by("explore_gate_0") is None
    assert figures.seeds(TABLE) == "n = 3" and figures.seeds(TABLE.assign(n=[3, 10])) == "n = 3 to 10"
    assert figures.seeds(pd.DataFrame({"arm": ["a", "a", "b"], "seed": [0, 1, 0]})) == "n = 1 to 2"


def test_colours_of_methods_are_told_apart_with_any_colour_vision():
    assert (
        len(set(figures.METHODS.values()) - {figures.OTHER}) == len(figures.METHODS) - 2
    )  # two traces share with rules
    assert figures.look("Adam + replay") == figures.look("Adam") != figures.look("AdamW")
    colours = np.array([matplotlib.colors.to_rgb(c) for c in dict.fromkeys(c for c, _ in figures.METHODS.values())])
    for deficiency in (None, "protanomaly", "deuteranomaly", "tritanomaly"):
        space = {"name": "sRGB1+CVD", "cvd_type": deficiency, "severity": 100}
        seen = cspace_convert(colours, space, "sRGB1") if deficiency else colours
        places = cspace_convert(seen.clip(0, 1), "sRGB1", "CAM02-UCS")
        nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(places, 2))
        assert nearest > 15, (deficiency, nearest)  # 1 is what can just be seen side by side


def examples():
    """A figure of the collection for each kind of plot, and long names where there is none."""
    found = {}
    for path in sorted((ROOT / "figures").glob("*.json")):
        record = json.loads(path.read_text())
        found.setdefault(record["kind"], (pd.read_csv(path.with_suffix(".csv")), record["options"], record["width"]))
    sizes = [(name, size, size / k) for k, name in enumerate(LONG, 1) for size in (26_506, 271_882, 1_272_010)]
    table = pd.DataFrame(sizes, columns=["optimizer", "parameters", "time"]).assign(memory=lambda t: t.time)
    panels = {"time": "Time of a step (µs)", "memory": "Memory besides the weights (MB)"}
    options = {"x": "parameters", "panels": panels, "label": "Parameters of the network, half of them in one layer"}
    return {**found, "scaling_panels": (table, options, "column")}


LONG = ["Adam", "Adam, fused", "Selective plasticity, compiled", "Consolidation, counted", "Coincidence, rank 128"]


@pytest.mark.parametrize("kind", PLOTS)
def test_text_can_be_read_in_print_and_nothing_is_cut_off(kind, folder):
    table, options, width = examples()[kind]
    fig = figures.picture(kind, table, options, width)
    fig.canvas.draw()
    texts = [text for text in fig.findobj(Text) if text.get_visible() and text.get_text().strip()]
    assert min(text.get_fontsize() for text in texts) >= figures.SMALLEST
    drawn = fig.get_tightbbox()  # inches
    edges = (drawn.x0, drawn.y0, fig.get_figwidth() - drawn.x1, fig.get_figheight() - drawn.y1)
    assert min(edges) > -0.02, edges
    figures.save(fig, "plot", table, formats=["pdf"])
    pdf, sizes = in_pdf((folder / "plot.pdf").read_bytes())
    assert b"/Type3" not in pdf and b"/FontFile2" in pdf
    assert min(sizes) >= figures.SMALLEST


def test_numbers_on_axes_are_short_and_without_small_exponents():
    assert [short(v) for v in (0, 0.01, 1, 2500, 3e6, 1e-7, -2e-5)] == [
        "0",
        "0.01",
        "1",
        "2.5k",
        "3M",
        "10⁻⁷",
        "-2·10⁻⁵",
    ]


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
