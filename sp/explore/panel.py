"""Shared parts of the panels: controls beside a figure, drawn in the background for the newest choice only."""

import hashlib
import html
import io
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

from sp import figures

STYLE = """<style>
.sp-panel { container-type: inline-size; }
.sp-panel h3 { margin: 0 0 2px 0; line-height: 1.3; }
.sp-panel p { margin: 0; }
.sp-panel .widget-html-content { line-height: 1.4; overflow-wrap: break-word; }
.sp-columns { flex-flow: row wrap; gap: 4px 16px; }
.sp-left { flex: 0 1 350px; overflow: hidden; }
.sp-left .widget-inline-hbox { width: 340px; max-width: calc(100% - 4px); }
.sp-left.sp-wide { flex-basis: 440px; }
.sp-wide .widget-inline-hbox { width: 430px; }
.sp-right { flex: 1 1 600px; min-width: 0; max-width: 920px; overflow: auto hidden; }
.sp-right img { width: calc(100% - 4px); min-width: 600px; height: auto; background: white; }
@container (max-width: 980px) { .sp-left { flex: 1 1 100%; flex-flow: row wrap; align-content: start; } }
.sp-stale { opacity: 0.35; transition: opacity 0.1s 0.5s; }
.sp-code pre { margin: 0; padding: 6px 8px; white-space: pre-wrap; line-height: 1.35; user-select: text;
  max-height: 240px; overflow: auto; background: var(--jp-layout-color2, #eee); color: var(--jp-ui-font-color1, #000); }
.sp-buttons { flex-flow: row wrap; }
.sp-buttons > * { width: auto; margin: 2px; }
.sp-buttons .jupyter-button { width: auto; }
.sp-right table { margin-top: 6px; border-collapse: collapse; }
.sp-right th, .sp-right td { padding: 1px 10px 1px 0; text-align: left; font-weight: normal; }
.sp-error { white-space: pre-wrap; padding: 6px 8px; border-left: 3px solid #c62828; color: #c62828; }
</style>"""

COPY = """<button class="lm-Widget jupyter-widgets jupyter-button widget-button" title="Copy the text below"
onclick="navigator.clipboard.writeText(this.closest('.sp-panel').querySelector('.sp-code pre').innerText)">Copy</button>
"""

DRAWING = threading.RLock()  # held while drawing, which matplotlib does for one thread at a time


@dataclass
class Answer:
    """What a panel shows for one choice.

    Attributes:
        kind: kind of plot, a name in `sp.figures.PLOTS`. data: the data to draw. text: what the plot shows, in words.
        table: its numbers. options: options of the plot.
        pending: what the answer still lacks, if a better one follows.
    """

    kind: str
    data: pd.DataFrame
    text: str
    table: pd.DataFrame
    options: dict[str, Any] = field(default_factory=dict)
    pending: str = ""

    def save(self, name: str, question: str, caption: str, about: dict | None = None) -> Figure:
        """Draw the figure at page width and save it, as `sp.figures.draw` does."""
        options = {"question": question, "caption": caption, "about": about, **self.options}
        return figures.draw(self.kind, name, self.data, width="page", **options)


class Panel(widgets.VBox):
    """Controls, a figure that follows them, and actions on the figure.

    Moving a control shows a busy sign at once, and greys out a figure that stays outdated for half a second. The new
    one is made in a thread, to keep the kernel free, and only for the last position. Exceptions are shown as messages.

    Args:
        name: name of the panel, used in file names.
        title: heading. look_for: a sentence that says what to look for.
        controls: name -> widget with a ``value``; their values are the choices.
        make: generator function, choices -> one or more `Answer` objects, each better than the one before; runs in a
            thread. The first is always shown; the rest are skipped when a newer choice is waiting.
        code: choices -> Python code that does the same outside the panel.
        adjust: called with the name of a control that moved, before the choices are read; for controls that depend on
            others.
        play: name of the slider that a play button moves; None for no button.
        wide: whether the controls hold long names rather than numbers.

    Attributes:
        controls: as given. answer: the answer shown; None before the first.
    """

    def __init__(
        self,
        name: str,
        title: str,
        look_for: str,
        controls: dict[str, widgets.Widget],
        make: Callable[[dict], Iterator[Answer]],
        code: Callable[[dict], str],
        adjust: Callable[[str], None] = lambda moved: None,
        play: str | None = None,
        wide: bool = False,
    ):
        self.name, self.controls, self.answer = name, controls, None
        self._title, self._make, self._code, self._adjust = title, make, code, adjust
        self._defaults = self.choices()
        self._shown_choices: dict = {}
        self._live: _Live | None = None
        self._quiet = False
        self._thread = ThreadPoolExecutor(1)
        self._asked = 0  # number of the newest request; older ones are dropped
        self._telling = threading.Lock()  # keeps the status correct, whichever thread sets it
        self._status = widgets.HTML()
        self._image = widgets.Image(format="png")
        self._readout = widgets.HTML().add_class("sp-readout")
        self._table = widgets.HTML()
        self._texts: dict[str, str] = {}
        self._text = widgets.HTML().add_class("sp-code")
        self._text_as = widgets.ToggleButtons(options=["Code", "LaTeX", "CSV"], style={"button_width": "70px"})
        self._text_as.observe(lambda _: self._show_text(), "value")
        self._error = widgets.HTML()
        reset = widgets.Button(description="Reset", icon="undo", tooltip="Back to the initial settings")
        save = widgets.Button(
            description="Save figure", icon="save", tooltip="Write PDF, PNG and CSV, with your choices, to figures/"
        )
        reset.on_click(lambda _: self.reset())
        save.on_click(lambda _: self.save())
        for control_name, control in controls.items():
            control.style.description_width = "60px" if wide else "130px"
            control.observe(lambda _, moved=control_name: self._change(lambda: self._adjust(moved)), "value")
        heading = f"<h3>{html.escape(title)}</h3><p>{html.escape(look_for)}</p>"
        buttons = [_player(controls[play])] if play else []
        buttons = widgets.HBox([*buttons, reset, save]).add_class("sp-buttons")
        left = widgets.VBox([*controls.values(), buttons, self._status, self._readout]).add_class("sp-left")
        if wide:
            left.add_class("sp-wide")
        right = widgets.VBox([self._image, self._table, self._error]).add_class("sp-right")
        columns = widgets.HBox([left, right]).add_class("sp-columns")
        as_text = widgets.HBox([self._text_as, widgets.HTML(COPY)]).add_class("sp-buttons")
        super().__init__([widgets.HTML(STYLE + heading), columns, as_text, self._text])
        self.add_class("sp-panel")
        self.refresh()

    def __repr__(self) -> str:
        return f"{self.name} panel (sliders need a running kernel)"

    def choices(self) -> dict[str, Any]:
        """The current choices."""
        return {name: control.value for name, control in self.controls.items()}

    def refresh(self) -> None:
        """Show the answer to the current choices as soon as it is ready."""
        with self._telling:
            self._status.value = "<b>&#9203; working &hellip;</b>"
            self._image.add_class("sp-stale")
            self._asked += 1
            self._newest = self._thread.submit(self._answer, self.choices(), self._asked)

    def reset(self) -> None:
        """Set every control back to its initial value."""

        def set_back() -> None:
            for name, value in self._defaults.items():
                self.controls[name].value = value
                self._adjust(name)

        self._change(set_back)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the figure shows the current choices; return False on timeout."""
        return not wait([self._newest], timeout).not_done

    def save(self) -> None:
        """Write the current figure as PDF, PNG, CSV and JSON; all but the CSV hold the choices and the versions."""
        self.wait()
        if self.answer is None:
            self._status.value = "There is no figure to save."
            return
        try:
            with DRAWING:
                digest = hashlib.sha256(json.dumps(self._shown_choices, sort_keys=True).encode()).hexdigest()[:8]
                name = f"explore_{self.name}_{digest}"
                about = {"panel": self.name, "choices": self._shown_choices}
                plt.close(self.answer.save(name, self._title, f"{self._title} {self.answer.text}", about))
        except OSError as error:
            self._show_error(error)
            return
        self._status.value = f"Saved {html.escape(str(figures.path_of(name)))}.pdf, .png and .csv"

    def _change(self, change: Callable[[], None]) -> None:
        """Change controls without asking for answers in between, then answer once."""
        if self._quiet:
            return
        self._quiet = True
        try:
            change()
        except Exception as error:
            self._show_error(error)
            return
        finally:
            self._quiet = False
        self.refresh()

    def _answer(self, choices: dict, number: int) -> None:
        if number != self._asked:
            return
        try:
            for answer in self._make(choices):
                self._show(answer, choices, number)
                if number != self._asked:
                    return
        except Exception as error:
            with self._telling:
                if number == self._asked:
                    self._show_error(error)

    def _show(self, answer: Answer, choices: dict, number: int) -> None:
        with DRAWING:
            picture = self._drawn(answer)
        self.answer, self._shown_choices = answer, choices
        self._error.value = ""
        self._image.value = picture
        self._readout.value = html.escape(answer.text).replace("\n", "<br>")
        self._table.value = answer.table.to_html(border=0)
        latex, csv = answer.table.to_latex(escape=True), answer.table.to_csv()
        self._texts = {"Code": self._code(choices), "LaTeX": latex, "CSV": csv}
        self._show_text()
        with self._telling:
            if number == self._asked:
                self._image.remove_class("sp-stale")
                self._status.value = f"<b>&#9203; {answer.pending}</b>" if answer.pending else "&#10003; up to date"

    def _show_text(self) -> None:
        self._text.value = f"<pre>{html.escape(self._texts.get(self._text_as.value, ''))}</pre>"

    def _drawn(self, answer: Answer) -> bytes:
        if answer.kind not in figures.PICTURES:
            canvas = FigureCanvasAgg(figures.picture(answer.kind, answer.data, answer.options, "page"))
            canvas.draw()
            return _encoded(canvas)
        if self._live is None:
            self._live = _Live(answer)
        return self._live.png(answer.data)

    def _show_error(self, error: Exception) -> None:
        self._error.value = f'<div class="sp-error">{html.escape(f"{type(error).__name__}: {error}")}</div>'
        self._status.value = "&#9888; failed: see the error message"


class _Live:
    """A figure that is drawn once and then only updated, which is fast enough for dragging."""

    def __init__(self, answer: Answer):
        self._picture = figures.PICTURES[answer.kind](partial(figures.figure, "page"), answer.data)
        for artist in self._picture.moving:
            artist.set_animated(True)
        self._canvas = FigureCanvasAgg(self._picture.figure)
        self._canvas.draw()
        self._picture.figure.set_layout_engine("none")  # the layout is computed only once
        self._empty = self._canvas.copy_from_bbox(self._picture.figure.bbox)

    def png(self, table: pd.DataFrame) -> bytes:
        """PNG of the figure of a table, on the axes that were drawn the first time."""
        self._picture.update(table)
        self._canvas.restore_region(self._empty)
        for artist in self._picture.moving:
            artist.draw(self._canvas.get_renderer())
        return _encoded(self._canvas)


def _player(slider: widgets.Widget) -> widgets.Play:
    player = widgets.Play(
        value=slider.value,
        min=slider.min,
        max=slider.max,
        step=max(1, (slider.max - slider.min) // 50),
        interval=200,
        show_repeat=False,
        tooltip="Move the slider automatically",
    )
    widgets.jslink((player, "value"), (slider, "value"))
    return player


def _encoded(canvas: FigureCanvasAgg) -> bytes:
    """The canvas as PNG, compressed for speed rather than size."""
    buffer = io.BytesIO()
    imsave(buffer, np.asarray(canvas.buffer_rgba()), format="png", pil_kwargs={"compress_level": 1})
    return buffer.getvalue()
