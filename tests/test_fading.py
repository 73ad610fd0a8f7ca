"""The animation in the README."""

import pandas as pd
from PIL import Image
from studies import fading


def test_a_digit_is_as_dark_as_the_accuracy_on_it(tmp_path):
    accuracies = {
        ("Adam", 0): (0.9, 0, 0, 0, 0),
        ("Adam", 1): (0, 0.9, 0, 0, 0),
        ("Coincidence", 0): (0.9, 0, 0, 0, 0),
        ("Coincidence", 1): (0.9, 0.9, 0, 0, 0),
    }
    rows = [
        {"method": method, "step": training, "training": training, "task": task, "accuracy": accuracy}
        for (method, training), of_tasks in accuracies.items()
        for task, accuracy in enumerate(of_tasks)
    ]
    fading.draw(pd.DataFrame(rows), tmp_path / "fading.gif")
    picture = Image.open(tmp_path / "fading.gif")
    frames = []
    for number in range(picture.n_frames):
        picture.seek(number)
        frames.append(picture.convert("L"))
    width, height = frames[0].size
    assert len(frames) == 2  # the last ones are shown longer

    def darkest(frame, method):
        first = frame.crop((int(0.14 * width), height * method // 2, int(0.28 * width), height * (method + 1) // 2))
        return first.crop((0, 30, first.width, first.height)).getextrema()[0]

    first, last = frames
    assert darkest(first, 0) < 60 and darkest(last, 0) > 180  # zero and one fade under the first method
    assert darkest(first, 1) < 60 and darkest(last, 1) < 60  # and stay under the second


def test_its_runs_are_paired_and_have_a_curve():
    named = fading.experiments(seeds=2)
    assert [(method, experiment.seed) for method, experiment in named] == [
        (method, seed) for method in fading.METHODS for seed in (0, 1)
    ]
    assert {experiment.curve_points for _, experiment in named} == {fading.POINTS}


def test_the_number_beside_a_row_is_the_mean_accuracy_on_past_digits(monkeypatch, tmp_path):
    shown = []

    class Frames:
        def __init__(self, fig, show, frames, **_):
            for frame in frames[:3]:
                show(frame)
                shown.append([text.get_text() for text in fig.texts])

        def save(self, *_, **__):
            """Write nothing."""

    monkeypatch.setattr(fading, "FuncAnimation", Frames)
    rows = [
        {"method": method, "step": step, "training": step, "task": task, "accuracy": (0.25, 0.75, 1.0, 0, 0)[task]}
        for method in fading.METHODS
        for step in range(3)
        for task in range(5)
    ]
    fading.draw(pd.DataFrame(rows), tmp_path / "fading.gif")
    assert [[text for text in texts if text[:2] == "0."] for texts in shown] == [[], ["0.25"] * 2, ["0.50"] * 2]
