"""Panels with sliders for notebooks. Each takes one call and shows at once what a choice does.

`gate_panel` shows the published gate over a real network, `learning_panel` trains two tasks, `results_panel` shows
results computed before.
"""

from sp.explore.gate import gate_answer, gate_panel
from sp.explore.learning import learning_answer, learning_panel
from sp.explore.panel import Answer, Panel
from sp.explore.results import results_panel

__all__ = ["Answer", "Panel", "gate_answer", "gate_panel", "learning_answer", "learning_panel", "results_panel"]
