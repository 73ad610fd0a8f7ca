"""Figures have their print size, embed their fonts, can be distinguished, and are redrawn byte for byte."""

import itertools
import json
import random
import re
import shutil
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
from sp.__main__ import main
from sp.figures import place, record, style
from sp.figures.kit import short

matplotlib.use("agg")
ROOT = Path(__file__).parents[2]
TABLE = pd.DataFrame(
    [("Adam", "final_1", 0.5, 0.4, 0.6, 3), ("Adam + replay", "final_1", 0.9, 0.8, 0.95, 3)],
    columns=["method", "metric", "mean", "low", "high", "n"],
)
WORDS = {"question": "Which?", "caption": "Accuracy."}
OPTIONS = {"panels": {"final_1": "Task A"}, "label": "Accuracy"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SP_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setattr(place, "_run", None)
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


def test_a_figure_leaves_with_its_table_and_record_and_is_drawn_again_as_the_same_bytes(folder, tmp_path):
    fig = figures.draw(
        "interval_plot", "plot", TABLE, keys=["b", "a"], formats=("pdf", "png", "svg"), **WORDS, **OPTIONS
    )
    first = contents(folder)
    assert sorted(first) == ["plot.csv", "plot.json", "plot.pdf", "plot.png", "plot.svg"]
    assert fig.get_size_inches().tolist() == pytest.approx([3.25, 0.94])
    assert matplotlib.image.imread(folder / "plot.png").shape[:2] == (282, 975)  # at 300 dpi
    pd.testing.assert_frame_equal(pd.read_csv(folder / "plot.csv"), TABLE)
    known = json.loads(first["plot.json"])
    assert known["caption"] == "Accuracy. Mean and 95 % bootstrap interval over seeds, n = 3."
    assert known["provenance"]["experiments"] == ["a", "b"] and "torch" in known["provenance"]["versions"]
    for name in ("plot.pdf", "plot.png", "plot.svg"):
        assert b"experiments" in first[name] and b"Date" not in first[name], name
    code = "from sp.figures import redraw; redraw('plot', formats=('pdf', 'png', 'svg'))"
    for hash_seed in "12":
        runs_in(code, folder, hash_seed)
        assert contents(folder) == first


def test_methods_may_be_called_like_numbers_or_like_what_is_missing(folder):
    table = TABLE.replace({"method": {"Adam": "0.1", "Adam + replay": "None"}})
    fig = figures.draw("interval_plot", "plot", table, formats=["png"], **WORDS, **OPTIONS)
    for one in (fig, figures.redraw("plot", formats=["png"])):
        assert [text.get_text() for text in one.axes[0].get_yticklabels()] == ["0.1", "None"]


WITHOUT_TORCH = """
import importlib.machinery, sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, *where):
        return None if name.partition(".")[0] == "torch" else super().find_spec(name, *where)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
"""


def test_a_figure_of_the_collection_is_drawn_again_where_there_is_no_pytorch(tmp_path):
    name = "01_forgetting/digits_curves"
    code = (
        f"{WITHOUT_TORCH}\n"
        "from sp import figures; from sp.figures import documents, paper; from sp.__main__ import main\n"
        f"assert main(['paper', '{name}', '--to', r'{tmp_path}', '--format', 'pdf', 'png']) == 0\n"
        "table = figures.stored('01_forgetting/digits')[1]\n"
        "figures.draw('interval_plot', 'mine', table, question='', caption='', panels={'final_1': 'A'}, label='')\n"
    )
    shutil.copytree(ROOT / "figures" / "01_forgetting", tmp_path / "figures" / "01_forgetting")
    runs_in(code, tmp_path / "figures", "0")
    assert "torch" not in provenance(tmp_path / "figures" / "mine")["versions"]
    committed = ROOT / "figures" / name
    if provenance(committed)["versions"]["matplotlib"] != matplotlib.__version__:
        pytest.skip("another matplotlib draws other bytes")
    for suffix in ("csv", "json", "pdf", "png"):
        drawn_again = (tmp_path / f"digits_curves.{suffix}").read_bytes()
        assert drawn_again == committed.with_suffix(f".{suffix}").read_bytes(), suffix


def test_journals_have_their_widths_and_unknown_ones_are_errors(folder):
    figures.draw("interval_plot", "plot", TABLE, **WORDS, **OPTIONS)
    fig = figures.redraw("plot", journal="nature", width="page", formats=["pdf"])
    assert fig.get_size_inches()[0] * 25.4 == pytest.approx(183)
    assert json.loads((folder / "plot.json").read_text())["journal"] == "nature"
    with pytest.raises(ValueError, match="width must be one of 'column', 'page', got 'poster'"):
        figures.figure("poster")
    with pytest.raises(ValueError, match=r"journal must be one of 'icml', 'neurips', .* got 'diary'"):
        figures.redraw("plot", journal="diary")
    with pytest.raises(ValueError, match=r"kind must be one of .*'interval_plot', .* got 'pie'"):
        figures.draw("pie", "plot", TABLE, **WORDS)
    with pytest.raises(ValueError, match="formats must be some of pdf, png, svg, got gif"):
        figures.redraw("plot", formats=["gif"])
    with pytest.raises(
        FileNotFoundError, match=r"no figure '01_toy/plot' .* similar: plot; make it with  python -m sp .*01_toy"
    ):
        figures.redraw("01_toy/plot")


def test_a_style_of_one_s_own_is_recorded_and_drawn_again(folder):
    style = {"only": ["Adam + replay", "Adam"], "names": {"Adam": "Ours"}, "colours": {"Adam + replay": "#123456"}}
    figures.draw("interval_plot", "plot", TABLE, width=4.2, formats=[], **WORDS, **OPTIONS)
    fig = figures.redraw("plot", style=style, formats=["png"])
    again = figures.redraw("plot", formats=["png"])
    for one in (fig, again):
        assert one.get_figwidth() == 4.2
        assert [text.get_text() for text in one.axes[0].get_yticklabels()] == ["Adam + replay", "Ours"]
        dots = [(line.get_color(), line.get_marker()) for line in one.axes[0].get_lines()[1::2]]
        assert dots == [("#123456", "s"), figures.look("Adam")]
    pd.testing.assert_frame_equal(pd.read_csv(folder / "plot.csv"), TABLE)  # all that was measured
    house = figures.redraw("plot", style={}, formats=["png"])
    assert [text.get_text() for text in house.axes[0].get_yticklabels()] == ["Adam", "Adam + replay"]
    for wrong, message in (
        ({"only": ["SGD"]}, r"method must be one of 'Adam', 'Adam \+ replay', got 'SGD'"),
        ({"names": {"Adam": "Adam + replay"}}, r"calls two methods 'Adam \+ replay'.*give each its own name"),
        ({"only": []}, "the style shows no method: list some in only"),
        ({"colors": {}}, "style must be one of 'only', 'names', 'colours', got 'colors'"),
        ({"colours": {"Adam": "reddish"}}, "colour of 'Adam' must be a matplotlib colour.* got 'reddish'"),
    ):
        with pytest.raises(ValueError, match=message):
            figures.redraw("plot", style=wrong, formats=["png"])
    lines = {"x": "step", "panels": {"value": ""}, "labels": ["", ""], "hue": "optimizer"}
    with pytest.raises(ValueError, match="has no methods to restyle; its table has optimizer, step, value"):
        figures.picture("line_panels", pd.DataFrame(columns=["optimizer", "step", "value"]), lines, style={"only": [1]})
    with pytest.raises(ValueError, match="width must be 'column', 'page', or 1 to 20 inches, got 400"):
        figures.redraw("plot", width=400, formats=["png"])


def test_a_style_on_the_command_line_goes_for_matrices_and_lines_as_well(tmp_path, monkeypatch):
    monkeypatch.setenv("SP_FIGURES", str(ROOT / "figures"))
    words = "--width 5 --only Coincidence Adam --rename Adam=Baseline --colour Coincidence=#123456 --format png"
    for name in ("02_consolidation/digits_split5_class_matrices", "09_comparison/digits_accuracy"):
        assert main(["paper", name, *words.split(), "--to", str(tmp_path)]) == 0
        known = json.loads((tmp_path / f"{name.rpartition('/')[2]}.json").read_text())
        assert known["width"] == 5 and known["style"]["names"] == {"Adam": "Baseline"}
    table = pd.read_csv(tmp_path / "digits_split5_class_matrices.csv")
    known = json.loads((tmp_path / "digits_split5_class_matrices.json").read_text())
    fig = figures.picture(known["kind"], table, known["options"], known["width"], style=known["style"])
    assert [ax.get_title() for ax in fig.axes[:2]] == ["Coincidence", "Baseline"]


def test_refreshing_changes_no_commit_for_nothing(folder, monkeypatch):
    def drawn(data):
        figures.draw("interval_plot", "plot", data, formats=[], **WORDS, **OPTIONS)
        return json.loads((folder / "plot.json").read_text()).get("commit")

    commits = iter([None, "first", "second"])
    monkeypatch.setattr(record, "commit", lambda: next(commits))
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
    return figures.path_of(name)


def test_own_parameters_lead_to_the_notebook_s_folder_and_are_all_in_the_record(project, capsys):
    figures.begin("01_toy", {"dataset": "mnist", "seeds": 3, "others": object()})
    assert drawn("mnist") == project / "figures" / "01_toy" / "mnist"
    made = provenance(project / "figures" / "01_toy" / "mnist")
    assert made["parameters"] == {"dataset": "mnist", "seeds": 3}
    assert made["command"] == "python -m sp figures --dataset mnist notebooks/01_toy.ipynb"
    # A figure that is not of a data set has the same record, whichever data set its notebook ran on.
    made = provenance(drawn("units"))
    assert made["parameters"]["dataset"] == "digits"
    assert made["command"] == "python -m sp figures notebooks/01_toy.ipynb"
    made = provenance(drawn("costs", command="python notebooks/studies bench"))
    assert made["command"] == "python notebooks/studies bench"
    assert figures.save_table(TABLE, "mnist_all") == project / "figures" / "01_toy" / "mnist_all.csv"
    assert drawn("03_other/plot") == project / "figures" / "03_other" / "plot"
    figures.begin("02_toy", {"rate": 0.5, "units": (3, 4)})
    assert provenance(drawn("all"))["parameters"] == {"rate": 0.5, "units": [3, 4]}
    assert capsys.readouterr().out == ""


def test_other_parameters_never_touch_the_project_s_figures(project, monkeypatch, capsys):
    namespace = {"dataset": "mnist", "seeds": 4}
    figures.begin("01_toy", namespace)
    namespace["seeds"] = 3  # what is reassigned later is not what the notebook ran with
    folder = project / "build" / "figures" / "01_toy" / "dataset=mnist,seeds=4"
    assert str(folder) in capsys.readouterr().out
    assert drawn("mnist").parent == figures.save_table(TABLE, "01_toy/one_of_my_own").parent == folder
    assert sorted(path.name for path in folder.iterdir()) == ["mnist.csv", "mnist.json", "one_of_my_own.csv"]
    made = provenance(folder / "mnist")
    assert made["parameters"] == {"dataset": "mnist", "seeds": 4}
    assert made["command"] == "python -m sp figures notebooks/01_toy.ipynb -p dataset mnist -p seeds 4"
    assert figures.stored("mnist")[0]["provenance"] == made
    assert not (project / "figures").exists()

    # The next notebook in the same process inherits none of it.
    figures.begin("02_toy", {"rate": 0.5, "units": [3, 4]})
    assert drawn("all").parent == project / "figures" / "02_toy"
    # The names of figures do not distinguish it from digits.
    figures.begin("01_toy", {"dataset": "letters", "seeds": 3})
    assert figures.path_of("letters").parent == folder.parent / "dataset=letters"


def test_a_suffix_in_the_name_of_a_figure_is_dropped(project):
    for name in ("lion", "lion.pdf", "lion.png"):
        assert figures.path_of(name) == project / "figures" / "lion"
    assert figures.path_of("lr=0.1.csv").name == "lr=0.1"
    for outside in ("../lion", str(project / "lion"), "01_toy/../../lion"):
        with pytest.raises(ValueError, match="must lie in the folder of figures"):
            figures.path_of(outside)


def test_another_folder_for_figures_is_that_of_other_parameters_as_well(project, monkeypatch):
    monkeypatch.setenv("SP_FIGURES", str(project / "mine"))
    figures.begin("02_toy", {"rate": 0.5, "units": [3, 4]})
    assert figures.path_of("all") == project / "mine" / "02_toy" / "all"
    figures.begin("02_toy", {"rate": 1, "units": [3, 4]})
    assert figures.path_of("all") == project / "mine" / "02_toy" / "rate=1.0" / "all"
    monkeypatch.setenv("SP_FIGURES", str(project / "grid" / "rate=1.0"))  # as a grid sets it
    assert figures.path_of("all") == project / "grid" / "rate=1.0" / "all"
    with pytest.raises(ValueError, match="02_toy has no units: run the cell with its parameters before this one"):
        figures.begin("02_toy", {"rate": 1.0})


def test_names_say_notebook_data_set_and_command():
    assert files.dataset_of("02_consolidation/fashion_mnist_gate") == "fashion_mnist"
    assert files.dataset_of("cifar10_features_x") == "cifar10_features"
    assert files.made_by("04_biology/tag") == "python -m sp figures notebooks/04_biology.ipynb"
    assert files.made_by("09_comparison/mnist_costs") == "python notebooks/studies costs --dataset mnist"
    assert files.dataset_of("explore_gate_0") is None and files.made_by("explore_gate_0") is None
    assert record.seeds(TABLE) == "n = 3" and record.seeds(TABLE.assign(n=[3, 10])) == "n = 3 to 10"
    assert record.seeds(pd.DataFrame({"method": ["a", "a", "b"], "seed": [0, 1, 0]})) == "n = 1 to 2"


def test_colours_of_methods_are_told_apart_with_any_colour_vision():
    assert len(set(figures.METHODS.values()) - {style.OTHER}) == len(figures.METHODS) - 2  # two traces share with rules
    assert figures.look("Adam + replay") == figures.look("Adam") != figures.look("AdamW")
    colours = np.array([matplotlib.colors.to_rgb(c) for c in dict.fromkeys(c for c, _ in figures.METHODS.values())])
    for deficiency in (None, "protanomaly", "deuteranomaly", "tritanomaly"):
        space = {"name": "sRGB1+CVD", "cvd_type": deficiency, "severity": 100}
        seen = cspace_convert(colours, space, "sRGB1") if deficiency else colours
        places = cspace_convert(seen.clip(0, 1), "sRGB1", "CAM02-UCS")
        nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(places, 2))
        assert nearest > 15, (deficiency, nearest)  # 1 is just visible side by side


LONG = ["Adam", "Adam, fused", "Selective plasticity, compiled", "Consolidation, counted", "Coincidence, rank 128"]
LONG_NAMES = pd.DataFrame(
    [(name, size, size / k) for k, name in enumerate(LONG, 1) for size in (26_506, 271_882, 1_272_010)],
    columns=["optimizer", "parameters", "time"],
).assign(memory=lambda table: table.time)
LONG_OPTIONS = {
    "x": "parameters",
    "panels": {"time": "Time of a step (µs)", "memory": "Memory besides the weights (MB)"},
    "labels": ["Parameters of the network, half of them in one layer", ""],
    "hue": "optimizer",
    "limits": None,
    "log": "xy",
}


def examples():
    """One figure of the collection for each kind of plot, and lines with long names."""
    found = [("line_panels", LONG_NAMES, LONG_OPTIONS, "column")]
    for path in sorted((ROOT / "figures").glob("*/*.json")):
        known = json.loads(path.read_text())
        if known["kind"] not in {kind for kind, *_ in found[1:]}:
            found.append((known["kind"], pd.read_csv(path.with_suffix(".csv")), known["options"], known["width"]))
    assert {kind for kind, *_ in found} == set(figures.PLOTS)
    return found


@pytest.mark.parametrize(("kind", "table", "options", "width"), examples())
def test_text_can_be_read_in_print_and_nothing_is_cut_off(kind, table, options, width, folder):
    fig = figures.picture(kind, table, options, width)
    fig.canvas.draw()
    texts = [text for text in fig.findobj(Text) if text.get_visible() and text.get_text().strip()]
    assert min(text.get_fontsize() for text in texts) >= style.SMALLEST
    drawn = fig.get_tightbbox()  # inches
    edges = (drawn.x0, drawn.y0, fig.get_figwidth() - drawn.x1, fig.get_figheight() - drawn.y1)
    assert min(edges) > -0.02, edges
    words = {"question": "", "caption": "", "width": width, "formats": ["pdf"]}
    figures.draw(kind, "plot", table, **words, **options)
    pdf, sizes = in_pdf((folder / "plot.pdf").read_bytes())
    assert b"/Type3" not in pdf and b"/FontFile2" in pdf
    assert min(sizes) >= style.SMALLEST


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
    (tmp_path / "build" / "notebooks").mkdir(parents=True)  # where executed copies go
    files.write_atomically(tmp_path / "notebooks" / "parameters.json", "{}")
    monkeypatch.delenv("SP_FIGURES", raising=False)
    for inside in ("notebooks", "build"):
        monkeypatch.chdir(tmp_path / inside)
        assert files.folder("figures") == tmp_path / "figures"
    monkeypatch.setenv("SP_FIGURES", "/elsewhere")
    assert str(files.folder("figures")) == "/elsewhere"
    monkeypatch.setenv("SP_FIGURES", "~/mine")
    assert files.folder("figures") == Path.home() / "mine"


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    files.write_atomically(link, "text")
    assert link.is_symlink() and target.read_text() == "text"
    files.write_atomically(Path("/dev/null"), "text")
    assert Path("/dev/null").is_char_device()


def test_a_sample_of_the_committed_figures_is_what_the_code_draws(tmp_path, monkeypatch):
    monkeypatch.delenv("SP_FIGURES", raising=False)
    monkeypatch.chdir(ROOT)
    found = sorted(Path("figures").glob("[0-9][0-9]_*/*.json"))
    for path in random.Random().sample(found, 6):
        name = f"{path.parent.name}/{path.stem}"
        plt.close(figures.redraw(name, to=tmp_path, formats=["pdf"]))
        same = (tmp_path / f"{path.stem}.pdf").read_bytes() == path.with_suffix(".pdf").read_bytes()
        assert same, f"{name} has changed: redraw it in place, with sp.figures.redraw({name!r}), and look at it"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomically(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match=r"No space left.*free some disk space"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]
