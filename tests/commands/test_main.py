"""Which commands there are, what they need, and the message for a word that none of them knows."""

import subprocess
import sys
from importlib import import_module

import pytest

from sp.__main__ import COMMANDS, main
from sp.files import DATASETS
from sp.lab.settings import SETTINGS


def refused(command, capsys):
    """The message for a command with wrong arguments."""
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_help_lists_the_groups_of_commands_and_needs_nothing_but_python():
    code = "import sys; sys.argv[1:] = ['--help']; from sp.__main__ import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for group, members in COMMANDS.items():
        assert f"\n{group}:\n" in done.stdout
        assert all(f"\n  {name} " in done.stdout for name in members)
    assert not {"torch", "pandas", "numpy", "matplotlib", "papermill"} & set(done.stderr.split())


def test_every_data_set_has_settings_and_a_title():
    assert set(SETTINGS) == set(DATASETS)


@pytest.mark.parametrize("name", [name for members in COMMANDS.values() for name in members])
def test_each_command_says_what_it_takes(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith(f"usage: python -m sp {name}")
    assert import_module(f"sp.commands.{name}").__doc__.splitlines()[0] in out


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (["figure"], "did you mean 'figures'?"),
        (["nothing-like-it"], "(choose from 'compare', 'sweep', 'figures', 'paper', 'audit', 'refresh', 'readme')"),
        (["figures", "--dataset", "mnits"], "did you mean 'mnist'?"),
        (["audit", "--sampel", "3"], "unrecognized arguments: --sampel 3: did you mean '--sample'?"),
        (["compare", "--method", "adam", "--seed", "2"], "--seed 2: did you mean '--seeds'?"),
        (["paper", "--width", "wide"], "must be column, page or a number of inches, got 'wide'"),
        (["audit", "--sample", "0"], "must be a whole number >= 1, got '0'"),
    ],
)
def test_a_misspelt_word_gets_a_suggestion(command, hint, capsys):
    assert hint in refused(command, capsys)


@pytest.mark.parametrize("command", [["sweep"], ["compare", "--method", "adam"]])
def test_a_misspelt_stream_gets_a_suggestion(command, capsys):
    assert main([*command, "--stream", "splt5_class"]) == 2
    assert "got 'splt5_class': did you mean 'split5_class'?" in capsys.readouterr().err


def test_a_misspelt_notebook_gets_a_suggestion(tmp_path, monkeypatch, capsys):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_toy.ipynb").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert main(["refresh", "notebooks/01_tye.ipynb"]) == 2
    assert capsys.readouterr().err.endswith("01_tye.ipynb does not exist: did you mean 'notebooks/01_toy.ipynb'?\n")


def test_a_value_that_cannot_be_read_or_is_given_twice_is_refused(capsys):
    for words, message in (
        (["-p", "seeds", "(1,2"], "-p seeds: expected values as v1,v2,..."),
        (["-p", "tasks", "2", "-p", "tasks", "5"], "-p tasks was given twice"),
    ):
        assert main(["sweep", *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "status"), [(OSError("full"), 2), (ValueError("no"), 2), (KeyboardInterrupt(), 130), (None, 0)]
)
def test_an_error_that_says_what_to_do_is_one_line(monkeypatch, capsys, raised, status):
    def run(_):
        if raised is not None:
            raise raised

    monkeypatch.setattr("sp.commands.readme.run", run)
    assert main(["readme"]) == status
    assert len(capsys.readouterr().err.splitlines()) == (status > 0)


def test_a_fault_of_the_program_is_not_hidden(monkeypatch):
    def run(_):
        raise KeyError("no such key")

    monkeypatch.setattr("sp.commands.readme.run", run)
    with pytest.raises(KeyError):
        main(["readme"])
