"""Panels with sliders for notebooks: each is one call, and shows at once what a choice does.

what was computed before.
"""

from sp.explore.gate import gate_panel
from sp.explore.panel import Answer, Panel
