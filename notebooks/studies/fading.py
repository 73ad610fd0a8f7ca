"""The animation in the README: ten digits that fade under Adam and stay under coincidence.

Five tasks of two digits each, one output layer, no replay. A digit is as dark as the network's accuracy on its task,
averaged over seeds.
"""

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.patches import Rectangle

from sp import figures, files
from sp.lab.data import load
from sp.lab.experiment import Experiment
from sp.lab.ledger import opened
from sp.lab.settings import on_stream
from sp.lab.sweep import run_all, with_seeds

NAME = "fading"
POINTS = 12  # frames per task
METHODS = {"Adam": {"optimizer": "adam", "options": {"lr": 0.001}}, "Coincidence": {"optimizer": "coincidence"}}
FAINTEST = 0.06  # opacity of a digit that is not known at all


def experiments(seeds: int = 5) -> list[tuple[str, Experiment]]:
    """Every run behind the animation, with the name of its method."""
    stream = on_stream("split5_class", "digits")
    methods = {name: replace(stream, curve_points=POINTS, **choices) for name, choices in METHODS.items()}
    return with_seeds(methods, range(seeds))


def make(workers: int | None = None) -> pd.DataFrame:
    """Run what the ledger does not have, commit the runs to it, and write ``figures/fading.csv`` and the animation."""
    named = experiments()
    results = run_all([experiment for _, experiment in named], workers=workers, carried=True)
    opened().commit(experiment.key() for _, experiment in named)
    rows = [
        {"method": method, **point}
        for (method, _), result in zip(named, results, strict=True)
        for point in result.curve
    ]
    by = ["method", "step", "training", "task"]
    table = pd.DataFrame(rows).groupby(by, sort=False).accuracy.mean().reset_index()
    figures.save_table(table, NAME)
    draw(table, files.folder("figures") / f"{NAME}.gif")
    return table


def draw(table: pd.DataFrame, path: Path) -> None:
    """Write the animation as a GIF.

    Args:
        table: ``method, step, training, task, accuracy``: accuracy on each ``task`` while task ``training`` is learnt.
        path: where to write the file. Its folder must exist.
    """
    data = load("digits")
    images = [np.asarray(data.train_x[data.train_y == digit][0]).reshape(8, 8) for digit in range(10)]
    with plt.style.context("default"):
        _animate(table, images, path)


def _animate(table: pd.DataFrame, images: list[np.ndarray], path: Path) -> None:
    fig, axes = plt.subplots(len(METHODS), 10, figsize=(6.4, 1.9))
    fig.subplots_adjust(left=0.14, right=0.9, top=0.84, bottom=0.02, wspace=0.12, hspace=0.12)
    shown, numbers, frames = {}, {}, []
    for row, method in zip(axes, METHODS, strict=True):
        place = row[0].get_position()
        middle = (place.y0 + place.y1) / 2
        fig.text(0.005, middle, method, va="center", fontsize=9, color=figures.look(method)[0])
        numbers[method] = fig.text(0.995, middle, "", va="center", ha="right", fontsize=11)
        for digit, (axis, image) in enumerate(zip(row, images, strict=True)):
            shown[method, digit] = axis.imshow(image, cmap="Greys", interpolation="nearest", alpha=FAINTEST)
            axis.axis("off")
            frame = Rectangle(
                (-0.4, -0.4), 7.8, 7.8, fill=False, color="#F6950A", linewidth=1.2, visible=False, clip_on=False
            )
            frames.append((digit, axis.add_patch(frame)))
    title = fig.text(0.14, 0.92, "", fontsize=8)
    fig.text(0.995, 0.92, "on past digits", fontsize=7, ha="right")
    pictures = [frame for _, frame in table.groupby("step")]

    def show(picture: pd.DataFrame) -> None:
        training = picture.training.iloc[0]
        title.set_text(f"learning {2 * training} and {2 * training + 1}, without replay and without task boundaries")
        for digit, frame in frames:
            frame.set_visible(digit // 2 == training)
        for method, of_method in picture.groupby("method"):
            accuracy = of_method.set_index("task").accuracy
            numbers[method].set_text(f"{accuracy.iloc[:training].mean():.2f}" if training else "")
            for digit in range(10):
                shown[method, digit].set_alpha(FAINTEST + (1 - FAINTEST) * accuracy[digit // 2])

    held = [*pictures, *[pictures[-1]] * 15]  # the last frame is held for a while
    FuncAnimation(fig, show, held, init_func=lambda: None).save(path, PillowWriter(fps=10), dpi=110)
    plt.close(fig)
