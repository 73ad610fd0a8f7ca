"""The panels of notebook 05 in a real JupyterLab: sliders, buttons, and what the page shows afterwards."""

import json
import time

import pandas as pd
import pytest
from conftest import ROOT

PANELS = {"gate": 0, "learning": 1, "results": 2}
LONG = 120_000  # milliseconds; a busy machine is slow
ERRORS = "[data-mime-type='application/vnd.jupyter.error'], [data-mime-type='application/vnd.jupyter.stderr']"


@pytest.fixture(scope="module")
def page(browser, lab):
    address, folder = lab
    path = folder / "notebooks/05_explore.ipynb"
    notebook = json.loads(path.read_text())
    parameters = next(cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", []))
    parameters["source"] = "seeds = 1\nsharpness = [0.0, 5.0]"
    path.write_text(json.dumps(notebook))
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(LONG)
    page.goto(f"{address}/lab/tree/notebooks/05_explore.ipynb?reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.wait_for_selector("text=Python 3 (ipykernel) | Idle")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    for number in PANELS.values():
        page.wait_for_function(
            "n => document.querySelectorAll('.sp-panel')[n]?.innerText.includes('up to date')", arg=number
        )
    page.wait_for_selector("text=Python 3 (ipykernel) | Idle")
    yield page
    page.close()


class PanelOnPage:
    """One panel, its controls by their description, and what it shows."""

    def __init__(self, page, name):
        self.page, self.box = page, page.locator(".sp-panel").nth(PANELS[name])
        self.image = self.box.locator(".sp-right img")

    def control(self, description):
        return self.box.locator(".widget-inline-hbox", has=self.page.locator(f".widget-label:text-is('{description}')"))

    def handle(self, description):
        return self.control(description).locator(".noUi-handle")

    def readout(self, description):
        return self.control(description).locator(".widget-readout").inner_text()

    def picture(self):
        return self.image.evaluate(
            "async image => { const data = await (await fetch(image.src)).arrayBuffer();"
            "return Array.from(new Uint8Array(await crypto.subtle.digest('SHA-1', data))).join() }"
        )

    def note_pictures(self):
        """Start recording in ``window.notes`` when the picture or the status changes, and what the status is."""
        self.box.evaluate(
            """box => {
                const status = box.querySelector(".sp-left > .widget-html:not(.sp-readout)"), begin = performance.now();
                window.notes = [];
                const note = () => window.notes.push({after: performance.now() - begin, status: status.innerText});
                const observer = new MutationObserver(note);
                observer.observe(status, {childList: true, subtree: true, characterData: true});
                observer.observe(box.querySelector(".sp-right img"), {attributes: true, attributeFilter: ["src"]});
            }"""
        )

    def status(self):
        return self.box.locator(".sp-left > .widget-html:not(.sp-readout)").inner_text()

    def code(self):
        return self.box.locator(".sp-code").inner_text()

    def settle(self, status="up to date"):
        deadline = time.monotonic() + LONG / 1000
        while status not in self.status():
            assert time.monotonic() < deadline, f"{self.status()}: {self.box.inner_text()}"
            self.page.wait_for_timeout(20)

    def changed_from(self, picture):
        deadline = time.monotonic() + LONG / 1000
        while self.picture() == picture:
            assert time.monotonic() < deadline, "the figure did not change"
            self.page.wait_for_timeout(10)
        self.settle()

    def press(self, button):
        self.box.get_by_role("button", name=button).click()


def saved_files(panel, lab, name):
    panel.press("Save figure")
    panel.settle("Saved")
    (csv,) = (lab[1] / "figures").rglob(f"explore_{name}_*.csv")
    assert csv.with_suffix(".pdf").read_bytes().startswith(b"%PDF") and csv.with_suffix(".png").exists()
    assert not pd.read_csv(csv).empty
    return json.loads(csv.with_suffix(".json").read_text())["provenance"]


def tables_in(store):
    return sum(path.read_bytes().count(b"\n") for path in store.glob("*.jsonl"))


def test_the_whole_notebook_ran_without_an_error(page):
    assert page.locator(".sp-panel").count() == 3
    assert page.locator(ERRORS).count() == 0
    assert page.locator(".jp-CodeCell", has_text="results.finished_runs").locator(".jp-OutputArea-output img").count()


def test_the_gate_follows_keyboard_and_mouse_and_comes_back_on_reset(page, lab):
    panel = PanelOnPage(page, "gate")
    begin, text = panel.picture(), panel.box.inner_text()
    panel.handle("k (sharpness)").press("ArrowRight")
    panel.changed_from(begin)
    assert panel.readout("k (sharpness)") == "5.25" and "plasticity_k=5.25," in panel.code()
    assert saved_files(panel, lab, "gate")["choices"]["plasticity_k"] == 5.25

    after_keyboard = panel.picture()
    box = panel.handle("steps into task B").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    for step in range(1, 11):
        page.mouse.move(box["x"] + 6 * step, box["y"] + box["height"] / 2)
    page.mouse.up()
    panel.changed_from(after_keyboard)
    assert int(panel.readout("steps into task B")) > 20

    moved = panel.picture()
    panel.press("Reset")
    panel.changed_from(moved)
    assert (panel.picture(), panel.box.inner_text()) == (begin, text)


def test_the_gate_plays(page):
    panel = PanelOnPage(page, "gate")
    begin = panel.picture()
    panel.box.locator(".widget-play button").first.click()
    panel.changed_from(begin)
    page.wait_for_timeout(1000)
    panel.box.locator(".widget-play button").first.click()
    assert int(panel.readout("steps into task B")) > 2
    panel.press("Reset")
    panel.settle()


def test_learning_opens_on_what_surprises_and_streams_the_last_position_only(page, lab):
    panel = PanelOnPage(page, "learning")
    panel.settle()
    begin, runs = panel.picture(), tables_in(lab[1] / "store")
    assert panel.control("method").locator("select").input_value() == "Coincidence"
    assert not panel.control("k (sharpness)").is_visible() and panel.control("retention r").is_visible()
    panel.note_pictures()
    handle = panel.handle("replay (images)")
    for _ in range(8):
        handle.press("ArrowRight")
    panel.changed_from(begin)
    notes = page.evaluate("window.notes")
    stages = [stage for note in notes for stage in ("one epoch", "training", "up to date") if stage in note["status"]]
    assert "one epoch" in stages and stages.count("training") > 1 and stages[-1] == "up to date"
    assert panel.readout("replay (images)") == "400" and "ReplayBuffer(capacity=400, seed=0)" in panel.code()
    assert "sp-stale" not in panel.image.get_attribute("class")
    assert 2 <= tables_in(lab[1] / "store") - runs < 16  # 16 if eight positions of two methods had queued up
    assert saved_files(panel, lab, "learning")["choices"]["replay_capacity"] == 400

    with_replay = panel.picture()
    panel.control("method").locator("select").select_option("Selective plasticity")
    panel.changed_from(with_replay)
    assert panel.readout("learning rate") == "1.0e-3" and "SelectivePlasticityOptimizer" in panel.code()
    assert panel.control("k (sharpness)").is_visible() and not panel.control("retention r").is_visible()

    moved = panel.picture()
    panel.press("Reset")
    panel.changed_from(moved)
    assert panel.picture() == begin


def test_numbers_are_copied(page):
    panel = PanelOnPage(page, "learning")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for kind, begins in (("LaTeX", "\\begin{tabular}"), ("CSV", "method,"), ("Code", "from sp import")):
        panel.press(kind)
        page.wait_for_function(
            "begins => document.querySelectorAll('.sp-code pre')[1].innerText.startsWith(begins)", arg=begins
        )
        panel.press("Copy")
        assert page.evaluate("navigator.clipboard.readText()").startswith(begins)


def test_results_show_what_is_wrong_and_recover(page, lab):
    panel = PanelOnPage(page, "results")
    begin, methods = panel.picture(), panel.control("methods").locator("select")
    assert panel.box.locator(".sp-right table").count() == 1
    panel.control("axis").locator("select").select_option("plasticity k")
    panel.changed_from(begin)
    over_k = panel.picture()
    methods.select_option([])
    panel.settle("failed")
    assert "choose at least one method" in panel.box.locator(".sp-error").inner_text()
    methods.select_option(index=0)
    panel.changed_from(over_k)
    assert panel.box.locator(".sp-error").count() == 0
    assert saved_files(panel, lab, "results")["choices"]["axis"] == "option_plasticity_k"


@pytest.mark.parametrize("width", [1800, 1366, 390])
def test_nothing_is_cut_off(page, width):
    page.set_viewport_size({"width": width, "height": 1400})
    if page.locator(".jp-DirListing").is_visible():
        page.keyboard.press("Control+b")  # the list of files, to read at full width
    page.wait_for_timeout(500)
    pictures = ROOT / "build/browser"
    pictures.mkdir(parents=True, exist_ok=True)
    for name in PANELS:
        panel = PanelOnPage(page, name)
        panel.box.scroll_into_view_if_needed()
        page.screenshot(path=pictures / f"{name}_{width}.png")
        outer = panel.box.bounding_box()
        assert panel.box.evaluate("box => box.scrollWidth <= box.clientWidth")
        for part in panel.box.locator(".sp-right, .sp-left > *:visible, .sp-buttons > *:visible").all():
            inner = part.bounding_box()
            assert inner["x"] >= outer["x"] and inner["x"] + inner["width"] <= outer["x"] + outer["width"] + 1
    assert page.locator(ERRORS).count() == 0
