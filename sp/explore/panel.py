"""What the panels share: controls beside a figure, drawn in the background for the newest choice only."""

import hashlib
import html
import io
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
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
.sp-left { flex: 0 0 350px; overflow: hidden; }
.sp-left .widget-inline-hbox { width: 340px; }
.sp-left.sp-wide { flex-basis: 440px; }
.sp-wide .widget-inline-hbox { width: 430px; }
.sp-right { flex: 1 1 600px; min-width: 0; max-width: 920px; overflow: auto hidden; }
.sp-right img { width: calc(100% - 4px); min-width: 600px; height: auto; background: white; transition: opacity 0.1s; }
@container (max-width: 980px) { .sp-left { flex: 1 1 100%; flex-flow: row wrap; align-content: start; } }
.sp-stale { opacity: 0.35; }
.sp-code pre { margin: 0; padding: 6px 8px; white-space: pre-wrap; line-height: 1.35; user-select: text;
  max-height: 240px; overflow: auto; background: var(--jp-layout-color2, #eee); color: var(--jp-ui-font-color1, #000); }
.sp-right table { margin-top: 6px; border-collapse: collapse; }
.sp-right th, .sp-right td { padding: 1px 10px 1px 0; text-align: left; font-weight: normal; }
.sp-error { white-space: pre-wrap; padding: 6px 8px; border-left: 3px solid #c62828; color: #c62828; }
</style>"""

DRAWING = threading.RLock()  # held by whoever draws: matplotlib does it for one thread at a time


@dataclass
class Answer:
    """What a panel shows for one choice.

    Attributes:
        kind: of plot, a name in `sp.figures.PLOTS`. data: what it is drawn from. text: the numbers in words.
        options: of the plot.
        table: shown below the figure, None for none.
        png: draws the figure for the screen, where there is a faster way than to draw all of it.
    """

    kind: str
    data: pd.DataFrame
    text: str
    options: dict[str, Any] = field(default_factory=dict)
    table: pd.DataFrame | None = None
    png: Callable[[], bytes] | None = None

    def save(self, name: str, question: str, caption: str, about: dict | None = None) -> Figure:
        """Draw the figure over the width of a page and save it, as `sp.figures.draw` does."""
        options = {"question": question, "caption": caption, "about": about, **self.options}
        return figures.draw(self.kind, name, self.data, width="page", **options)


class Latest:
    """Runs a function in a thread, one request at a time, and always the newest: older ones that wait are dropped.

    Args:
        function: called with a request; what it raises is its own to handle.
    """

    def __init__(self, function: Callable[[Any], None]):
        self._function = function
        self._lock = threading.Lock()
        self._waiting: list = []
        self._thread: threading.Thread | None = None

    def submit(self, request: Any) -> None:
        """Run the function on this request as soon as the one that is running has ended, unless a newer one comes."""
        with self._lock:
            self._waiting = [request]
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()

    def superseded(self) -> bool:
        """Whether a newer request waits."""
        return bool(self._waiting)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is left to run; False where the time was not enough."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return self._thread is None

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                request = self._waiting.pop()
            self._function(request)


class Panel(widgets.VBox):
    """Controls, a figure that follows them, and what can be done with it.

    A move of a control shows a busy sign and greys the last figure at once; the new one is made in a thread, so that
    the kernel stays free, and only for the last position. An exception is shown as a message.

    Args:
        name: of the panel, in file names.
        title: heading. look_for: a sentence that says what to look for.
        controls: name -> widget with a ``value``; their values are the choices.
        make: choices -> `Answer`; runs in a thread, and holds `DRAWING` while it draws.
        code: choices -> Python code that does the same outside the panel.
        adjust: called with the name of a control that moved, before the choices are read: for controls that depend on
            others; None for none.
        wide: whether the controls hold long names rather than numbers.

    Attributes:
        controls: as given. answer: what is shown, None before the first.
    """

    def __init__(
        self,
        name: str,
        title: str,
        look_for: str,
        controls: dict[str, widgets.Widget],
        make: Callable[[dict], Answer],
        code: Callable[[dict], str],
        adjust: Callable[[str], None] | None = None,
        wide: bool = False,
    ):
        self.name, self.controls, self.answer = name, controls, None
        self._title, self._make, self._code, self._adjust = title, make, code, adjust
        self._defaults = self.choices()
        self._shown_choices: dict = {}
        self._quiet = False
        self._latest = Latest(self._answer)
        self._telling = threading.Lock()  # so that the sign says what is, whichever thread sets it
        self._status = widgets.HTML()
        self._image = widgets.Image(format="png")
        self._readout = widgets.HTML().add_class("sp-readout")
        self._code_text = widgets.HTML().add_class("sp-code")
        self._error = widgets.HTML()
        reset = widgets.Button(description="Reset", icon="undo", tooltip="Back to where the panel began")
        save = widgets.Button(
            description="Save figure", icon="save", tooltip="Write PDF, PNG and CSV, with what was chosen, to figures/"
        )
        reset.on_click(lambda _: self.reset())
        save.on_click(lambda _: self.save())
        for control_name, control in controls.items():
            control.style.description_width = "60px" if wide else "130px"
            control.observe(lambda change, moved=control_name: self._moved(moved), "value")
        heading = f"<h3>{html.escape(title)}</h3><p>{html.escape(look_for)}</p>"
        left = widgets.VBox([*controls.values(), widgets.HBox([reset, save]), self._status]).add_class("sp-left")
        if wide:
            left.add_class("sp-wide")
        right = widgets.VBox([self._image, self._readout, self._error]).add_class("sp-right")
        columns = widgets.HBox([left, right]).add_class("sp-columns")
        caption = widgets.HTML("<p>Code for this:</p>")
        super().__init__([widgets.HTML(STYLE + heading), columns, caption, self._code_text])
        self.add_class("sp-panel")
        self.refresh()

    def __repr__(self) -> str:
        return f"{self.name} panel (sliders need a running kernel)"

    def choices(self) -> dict[str, Any]:
        """What is chosen now."""
        return {name: control.value for name, control in self.controls.items()}

    def refresh(self) -> None:
        """Show the answer to what is chosen now, as soon as it is there."""
        with self._telling:
            self._status.value = "<b>&#9203; working &hellip;</b>"
            self._image.add_class("sp-stale")
            self._latest.submit(self.choices())

    def reset(self) -> None:
        """Set every control back to where it was when the panel was made."""
        self._quiet = True
        try:
            for name, value in self._defaults.items():
                self.controls[name].value = value
                if self._adjust is not None:
                    self._adjust(name)
        except Exception as error:
            self._show_error(error)
        finally:
            self._quiet = False
        self.refresh()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the figure shows what is chosen; False where the time was not enough."""
        return self._latest.wait(timeout)

    def save(self) -> None:
        """Write the figure of what is chosen as PDF, PNG and CSV, each with what was chosen and the versions."""
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

    def _moved(self, name: str) -> None:
        if self._quiet:
            return
        self._quiet = True
        try:
            if self._adjust is not None:
                self._adjust(name)
        except Exception as error:
            self._show_error(error)
            return
        finally:
            self._quiet = False
        self.refresh()

    def _answer(self, choices: dict) -> None:
        try:
            code = self._code(choices)
            answer = self._make(choices)
            with DRAWING:
                picture = answer.png() if answer.png else _drawn(answer)
        except Exception as error:
            with self._telling:
                if not self._latest.superseded():
                    self._show_error(error)
            return
        self.answer, self._shown_choices = answer, choices
        self._error.value = ""
        self._image.value = picture
        table = "" if answer.table is None else answer.table.to_html(border=0)
        self._readout.value = html.escape(answer.text).replace("\n", "<br>") + table
        self._code_text.value = f"<pre>{html.escape(code)}</pre>"
        with self._telling:
            if not self._latest.superseded():
                self._image.remove_class("sp-stale")
                self._status.value = "&#10003; up to date"

    def _show_error(self, error: Exception) -> None:
        self._error.value = f'<div class="sp-error">{html.escape(f"{type(error).__name__}: {error}")}</div>'
        self._status.value = "&#9888; not done: see the message beside"


def encoded(canvas: FigureCanvasAgg) -> bytes:
    """What is drawn on a canvas as PNG, made fast rather than small."""
    buffer = io.BytesIO()
    imsave(buffer, np.asarray(canvas.buffer_rgba()), format="png", pil_kwargs={"compress_level": 1})
    return buffer.getvalue()


def _drawn(answer: Answer) -> bytes:
    canvas = FigureCanvasAgg(figures.picture(answer.kind, answer.data, answer.options, "page"))
    canvas.draw()
    return encoded(canvas)
