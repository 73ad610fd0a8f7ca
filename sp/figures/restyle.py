"""Custom styles for figures: which methods, in which order, under which names and in which colours."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.colors import is_color_like

from sp.checks import check_choice
from sp.figures.style import Looks, look


def restyled(
    table: pd.DataFrame, options: dict[str, Any], style: Mapping[str, Any]
) -> tuple[pd.DataFrame, dict[str, Any], Looks]:
    """Apply a style to the table and options of a plot; also return the look of each method.

    Args:
        table: must have a column ``method`` unless the style is empty. options: options of the plot.
        style: ``only``: methods to show, in order; ``names``: method -> new name; ``colours``: method -> colour.

    Raises:
        ValueError: an unknown key in the style, a method that is not in the table, an invalid colour, no method to show
            or two of one name.
    """
    if not style:
        return table, options, {}
    if "method" not in table:
        raise ValueError(f"this figure has no methods to restyle; its table has {', '.join(map(str, table.columns))}")
    known = list(dict.fromkeys(table.method))
    for word, chosen in style.items():
        check_choice("style", word, ("only", "names", "colours"))
        for method in chosen:
            check_choice("method", method, known)
    names, colours, shown = style.get("names", {}), style.get("colours", {}), style.get("only", known)
    if not shown:
        raise ValueError("the style shows no method: list some in only, or leave it out to show all")
    called = [names.get(method, method) for method in shown]
    if twice := [name for name in called if called.count(name) > 1]:
        raise ValueError(f"the style calls two methods {twice[0]!r}, which would be averaged: give each its own name")
    for method, colour in colours.items():
        if not is_color_like(colour):
            raise ValueError(f"the colour of {method!r} must be a matplotlib colour, such as '#CF5100', got {colour!r}")

    def chosen_of(value: Any) -> Any:
        """Restrict an option that lists methods, or titles by method, to those that are shown."""
        if not isinstance(value, list | dict) or not value or not set(value) <= set(known):
            return value
        methods = [method for method in shown if method in value]
        if isinstance(value, list):
            return [names.get(method, method) for method in methods]
        return {names.get(method, method): names.get(value[method], value[method]) for method in methods}

    rows = pd.concat([table[table.method == method] for method in shown], ignore_index=True)
    looks = {names.get(method, method): (colours.get(method, look(method)[0]), look(method)[1]) for method in shown}
    options = {name: chosen_of(value) for name, value in options.items()}
    return rows.assign(method=rows.method.replace(names)), options, looks
