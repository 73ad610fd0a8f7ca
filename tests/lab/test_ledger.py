"""The ledger returns what it was given or nothing, whatever happens to its files and however they are shared."""

import io
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sp import files
from sp.lab import experiment, sweep
from sp.lab.experiment import Experiment, Result, run
from sp.lab.ledger import Ledger, opened
from tests.lab.test_experiment import same

SMALL = Experiment(hidden=(8,), options={"lr": 1e-3}, curve_points=2)
DAMAGES = 1000


@pytest.fixture(scope="module")
def results():
    return [run(replace(SMALL, seed=seed)) for seed in range(8)]


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("SP_FIGURES", "SP_STORE", "SP_LEDGER", "SP_FRESH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def often_switched():
    """Make Python switch threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def only_file(folder):
    (path,) = folder.glob("*.jsonl")
    return path


def test_it_gives_back_every_bit(results, tmp_path):
    ledger = Ledger(tmp_path)
    assert ledger.get(SMALL) is None
    for result in results:
        ledger.put(result)
    for reader in (ledger, Ledger(tmp_path)):
        for result in results:
            read = reader.get(result.experiment)
            assert same(read, result) and read.seconds == round(result.seconds, 3) and read.versions == result.versions
    assert len(Ledger(tmp_path).results()) == len(results)
    assert "processor" in results[0].versions


def test_what_was_run_is_not_run_again(results, tmp_path, monkeypatch):
    ledger = Ledger(tmp_path)
    ledger.put(results[0])
    monkeypatch.setattr(sweep, "run", None)
    assert same(*sweep.run_all([results[0].experiment], ledger, 1, False), results[0])


def damaged(content: bytes, random: random.Random) -> bytes:
    kind, place = random.randrange(5), random.randrange(len(content))
    if kind == 0:  # cut off
        return content[:place]
    if kind == 1:  # another byte
        return content[:place] + bytes([random.randrange(256)]) + content[place + 1 :]
    if kind == 2:  # something missing
        return content[:place] + content[place + random.randrange(1, 300) :]
    if kind == 3:  # something from elsewhere
        other = random.randrange(len(content))
        return content[:place] + content[other : other + random.randrange(1, 300)] + content[place:]
    lines = content.split(b"\n")  # key and seal of one row before the content of another
    first, second = random.sample(range(len(lines) - 1), 2)
    head, tail = lines[first].rsplit(b" ", 1)[0], lines[second].rsplit(b" ", 1)[1]
    lines[first] = head + b" " + tail
    return b"\n".join(lines)


def test_a_thousand_damages_are_never_read(results, tmp_path):
    ledger = Ledger(tmp_path)
    for result in results:
        ledger.put(result)
    path = only_file(tmp_path)
    content, drawn, lost = path.read_bytes(), random.Random(0), 0
    for _ in range(DAMAGES):
        path.write_bytes(damaged(content, drawn))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            again = Ledger(tmp_path)
            read = [again.get(result.experiment) for result in results]
        for result, found in zip(results, read, strict=True):
            assert found is None or same(found, result)
        lost += sum(found is None for found in read)
        if caught:
            assert "recomputed" in str(caught[0].message)
    assert lost > DAMAGES / 2


def test_swapped_and_foreign_rows_are_computed_again_with_a_warning(results, tmp_path):
    ledger = Ledger(tmp_path)
    ledger.put(results[0])
    ledger.put(results[1])
    path = only_file(tmp_path)
    first, second = (line.split(b" ", 1) for line in path.read_bytes().splitlines())
    path.write_bytes(b" ".join([first[0], second[1]]) + b"\n" + b" ".join([second[0], first[1]]) + b"\n")
    with pytest.warns(UserWarning, match=r"2 damaged row\(s\), which are recomputed"):
        assert Ledger(tmp_path).get(results[0].experiment) is None
    path.unlink()
    writer = Ledger(tmp_path)
    writer._own.append(results[0].experiment.key(), results[1].as_row())  # sealed, but of another experiment
    with pytest.warns(UserWarning, match="belongs to another experiment"):
        assert Ledger(tmp_path).get(results[0].experiment) is None


def test_a_row_that_is_no_result_is_computed_again(results, tmp_path):
    ledger = Ledger(tmp_path)
    ledger._own.append(SMALL.key(), {**results[0].as_row(), "experiment": {"stream": "no"}})
    with pytest.warns(UserWarning, match="damaged"):
        assert Ledger(tmp_path).get(SMALL) is None


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_no_file_can_run_code(results, tmp_path):
    folder, trap = tmp_path / "ledger", tmp_path / "ran"
    Ledger(folder).put(results[0])
    (folder / "evil.jsonl").write_bytes(pickle.dumps(Payload(str(trap))) + b"\n")
    (folder / "folder.jsonl").mkdir()
    with pytest.warns(UserWarning, match="damaged"):
        assert same(Ledger(folder).get(SMALL), results[0])
    assert not trap.exists()


def test_a_folder_that_cannot_be_written_says_so(results, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="SP_STORE"):
        Ledger(tmp_path / "file").put(results[0])


def test_a_disk_that_fills_up_is_a_clear_error_and_takes_no_other_row_along(results, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, line):
            return super().write(line[:100])

    ledger = Ledger(tmp_path)
    ledger.put(results[0])
    with monkeypatch.context() as patched, pytest.raises(OSError, match=r"the disk is full.*SP_STORE"):
        patched.setattr("pathlib.Path.open", lambda path, mode, **_: Full(path, mode))
        ledger.put(results[1])
    ledger.put(results[2])
    found = [Ledger(tmp_path).get(result.experiment) for result in results[:3]]
    assert same(found[0], results[0]) and found[1] is None and same(found[2], results[2])


def test_two_ledgers_of_one_folder_see_each_other(results, tmp_path):
    one, other = Ledger(tmp_path), Ledger(tmp_path)
    for number, result in enumerate(results):
        (one, other)[number % 2].put(result)
    for ledger in (one, other):
        assert all(same(ledger.get(result.experiment), result) for result in results)


def test_threads_that_open_a_ledger_together_all_find_what_it_has(results, tmp_path, often_switched):
    ledger = Ledger(tmp_path)
    for seed in range(500):
        ledger.put(replace(results[0], experiment=replace(SMALL, seed=seed)))
    for _ in range(5):
        opened_now, start, found = Ledger(tmp_path), threading.Barrier(4), []

        def look(ledger=opened_now, start=start, found=found):
            start.wait()
            found.append(ledger.get(replace(SMALL, seed=499)) is not None)

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [True] * 4


WRITER = """
import sys
from dataclasses import replace
from sp.lab.experiment import Experiment, run
from sp.lab.ledger import Ledger
experiment = Experiment.from_dict({small!r})
ledger = Ledger({folder!r})
result = run(experiment)
ledger.put(result)
print("ready", flush=True)
for seed in range(1, 100_000):
    ledger.put(replace(result, experiment=replace(experiment, seed=seed)))
"""


def test_a_writer_that_is_killed_loses_at_most_the_row_in_flight(tmp_path):
    code = WRITER.format(small=SMALL.as_dict(), folder=str(tmp_path))
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(0.3)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    written = sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("*.jsonl"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ledger = Ledger(tmp_path)
        seeds = [result.experiment.seed for result in ledger.results()]
        assert seeds and len(seeds) <= written and ledger.get(SMALL) is not None
    ledger.put(replace(ledger.get(SMALL), experiment=replace(SMALL, seed=10**6)))
    assert Ledger(tmp_path).get(replace(SMALL, seed=10**6)) is not None


def table_of(experiment, factor):
    return pd.DataFrame({"name": ["a", "b"], "value": [factor / 3, np.nan], "count": [1, experiment.seed]})


def other_table_of(experiment, factor):
    return pd.DataFrame({"name": ["a"], "value": [2 * factor], "count": [3]})


def test_tables_are_kept_by_the_code_and_the_arguments(tmp_path):
    ledger = Ledger(tmp_path)
    assert ledger.table(table_of, SMALL, 2.0, missing_too=False) is None
    first = ledger.table(table_of, SMALL, 2.0)
    assert first.value.tolist()[0] == pytest.approx(2 / 3, rel=1e-5) and np.isnan(first.value[1])
    pd.testing.assert_frame_equal(Ledger(tmp_path).table(table_of, SMALL, 2.0, missing_too=False), first)
    for make, arguments in (
        (table_of, (SMALL, 3.0)),
        (table_of, (replace(SMALL, seed=1), 2.0)),
        (other_table_of, (SMALL, 2.0)),
    ):
        assert ledger.table(make, *arguments, missing_too=False) is None
    assert ledger.results() == []  # a table is not a run


def test_a_table_of_what_has_no_digest_is_made_anew_and_says_so(tmp_path):
    file = (tmp_path / "file").open("w")
    ledger = Ledger(tmp_path / "ledger")

    def closes_over_a_file():
        return pd.DataFrame({"name": [file.name]})

    for _ in range(2):
        with pytest.warns(UserWarning, match="closes_over_a_file is not kept: .*file is of type TextIOWrapper"):
            assert len(ledger.table(closes_over_a_file)) == 1
    assert not list((tmp_path / "ledger").glob("*"))


def test_the_committed_layer_is_read_and_nothing_is_written_there(results, project, monkeypatch):
    log = project / "log"
    monkeypatch.setenv("SP_LEDGER_LOG", str(log))
    user = Ledger()
    user.put(results[0])
    user.put(results[1])
    committed = files.folder("ledger") / "digits.jsonl"
    assert user.commit([results[0].experiment.key()]) == 1 and committed.is_file()
    before = committed.read_bytes()
    monkeypatch.setenv("SP_STORE", str(project / "another"))
    ledger = opened()
    assert same(ledger.get(results[0].experiment), results[0]) and ledger.get(results[1].experiment) is None
    ledger.put(results[2])
    assert committed.read_bytes() == before
    assert log.read_text().split() == [
        *("computed", results[0].experiment.key()),
        *("computed", results[1].experiment.key()),
        *("read", results[0].experiment.key()),
        *("computed", results[2].experiment.key()),
    ]
    monkeypatch.setenv("SP_FRESH", "mnist")
    assert same(opened().get(results[0].experiment), results[0])
    monkeypatch.setenv("SP_FRESH", "digits")
    assert opened().get(results[0].experiment) is None and opened().get(results[2].experiment) is not None
    monkeypatch.setenv("SP_FRESH", "1")
    with pytest.raises(ValueError, match="SP_FRESH must be the name of a data set, digits, "):
        opened()


def test_a_commit_leaves_out_what_is_not_used_and_what_older_rules_made(results, project, monkeypatch):
    ledger = Ledger()
    for result in results[:3]:
        ledger.put(result)
    keys = [result.experiment.key() for result in results]
    assert ledger.commit(keys[:2]) == 2 and ledger.commit(keys[2:3]) == 3
    first = (files.folder("ledger") / "digits.jsonl").read_bytes()
    assert Ledger().commit([]) == 3 and (files.folder("ledger") / "digits.jsonl").read_bytes() == first
    assert ledger.commit(keys[:1], instead_of="mnist") == 3 and ledger.commit(keys[:1], instead_of="digits") == 1
    monkeypatch.setattr("sp.lab.experiment.RULES_VERSION", -1)
    assert Ledger().results() == [] and Ledger().commit([]) == 0
    assert not list(files.folder("ledger").glob("*.jsonl"))


def test_a_commit_leaves_out_methods_that_no_longer_exist(results, project, monkeypatch):
    ledger = Ledger()
    for result in results[:2]:
        ledger.put(result)
    keys = [result.experiment.key() for result in results[:2]]
    assert ledger.commit(keys) == 2
    monkeypatch.setitem(experiment._ALLOWED, "optimizer", ("sgd",))
    assert Ledger().commit(keys) == 0


def test_a_commit_by_another_is_seen_and_nothing_is_taken_for_damaged(results, project):
    writer, reader = Ledger(), Ledger()
    for result in results:
        writer.put(result)
    keys = [result.experiment.key() for result in results]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for count in (3, 1, 8):  # files that grow, shrink and grow
            writer.commit(keys[:count], instead_of="digits")
            committed = Ledger(project / "empty", files.folder("ledger"))
            assert len(committed.results()) == count
            assert reader.get(replace(SMALL, seed=99)) is None and reader.get(results[7].experiment) is not None
        opened_before = Ledger(project / "empty", files.folder("ledger"))
        assert opened_before.get(SMALL) is not None
        extra = run(replace(SMALL, seed=50))
        writer.put(extra)
        writer.commit([extra.experiment.key()])
        assert same(opened_before.get(extra.experiment), extra)


def test_other_rows_in_a_file_with_the_same_inode_are_read(results, tmp_path):
    (tmp_path / "read").mkdir()
    reader = Ledger(tmp_path / "read")
    for number, part in enumerate((results[:3], results[3:6], results[6:8])):
        for result in part:
            Ledger(tmp_path / str(number)).put(result)
        rows = b"".join(path.read_bytes() for path in (tmp_path / str(number)).glob("*.jsonl"))
        (tmp_path / "read" / "digits.jsonl").write_bytes(rows)
        assert all(same(reader.get(result.experiment), result) for result in part)


def test_a_run_that_was_carried_over_has_the_measures_it_had(results, tmp_path):
    carried = replace(results[0], accuracy=None, initial=None, curve=[], measures={"average_accuracy": 0.25})
    ledger = Ledger(tmp_path)
    ledger.put(carried)
    named = [("carried", SMALL), ("run", replace(SMALL, seed=1))]
    rows = sweep.runs(named, Ledger(tmp_path), workers=1, progress=False, carried=True)
    assert rows.average_accuracy.tolist() == [0.25, results[1].accuracy[-1].mean()] and np.isnan(rows.final_1[0])
    again = sweep.runs(named, Ledger(tmp_path), workers=1, progress=False)
    assert again.average_accuracy[0] == results[0].accuracy[-1].mean() and again.final_1.notna().all()


def test_a_row_is_one_line_of_json(results, tmp_path):
    Ledger(tmp_path).put(results[0])
    key, _, content = only_file(tmp_path).read_text().rstrip("\n").split(" ", 2)
    row = json.loads(content)
    assert key == SMALL.key() and row["experiment"] == {"hidden": [8], "options": {"lr": 1e-3}, "curve_points": 2}


def test_the_buffer_the_size_and_a_divergence_are_kept(tmp_path):
    counted = {"buffer": {"3": 5}, "parameters": 7, "diverged": True}
    result = Result(replace(SMALL, replay_capacity=5), np.eye(2), np.zeros(2), **counted)
    Ledger(tmp_path).put(result)
    found = Ledger(tmp_path).get(result.experiment)
    assert {name: getattr(found, name) for name in counted} == counted
