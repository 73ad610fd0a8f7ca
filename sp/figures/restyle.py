"""A figure in somebody's own style: which methods, in which order, under which names and in which colours."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.colors import is_color_like

from sp.checks import check_choice
from sp.figures.style import Looks, look

STYLE = ("only", "names", "colours")


def check_style(style: Mapping[str, Any], table: pd.DataFrame) -> None:
    """Raises: ValueError: a word that is not in `STYLE`, a method that the table does not have, or no colour."""
    known = dict.fromkeys(table.get("method", ()))
    for word, chosen in style.items():
        check_choice("style", word, STYLE)
        for method in chosen:
            check_choice(f"style[{word!r}]", method, known)
    for method, colour in style.get("colours", {}).items():
        if not is_color_like(colour):
            raise ValueError(f"the colour of {method!r} must be one of matplotlib's, such as '#CF5100', got {colour!r}")


def restyled(
    table: pd.DataFrame, options: dict[str, Any], style: Mapping[str, Any]
) -> tuple[pd.DataFrame, dict[str, Any], Looks]:
    """The table and the options of a plot with the methods of a style, and how the renamed and recoloured ones look.

    Args:
        table: with a column ``method``, if the style is not empty. options: of the plot.
        style: ``only``, methods, in order; ``names``, method -> what it is called; ``colours``, method -> colour.
    """
    if not style:
        return table, options, {}
    check_style(style, table)
    names, colours = style.get("names", {}), style.get("colours", {})
    known = list(dict.fromkeys(table.method))
    shown = style.get("only", known)
    looks = {names.get(method, method): (colours.get(method, look(method)[0]), look(method)[1]) for method in shown}
    table = pd.concat([table[table.method == method] for method in shown], ignore_index=True)

    def chosen(value: Any) -> Any:
        """An option that lists methods, or titles by method, has those that are shown."""
        if not isinstance(value, list | dict) or not value or not set(value) <= set(known):
            return value
        methods = [method for method in shown if method in value]
        if isinstance(value, list):
            return [names.get(method, method) for method in methods]
        return {names.get(method, method): names.get(value[method], value[method]) for method in methods}

    return (
        table.assign(method=table.method.replace(names)),
        {name: chosen(value) for name, value in options.items()},
        looks,
    )
