"""The neighbours of a point that was tried, in each option's range: the steps of a pattern search.

The best point of a small grid can lie at its edge. From there the search moves to the next rung of each option's
ladder, up and down, as long as that helps (Hooke & Jeeves 1961).
"""

# Rates, strengths and the like move by thirds of a decade; shares have their own rungs.
LADDERS = {
    "threshold": (0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 0.999),
    "dropout": (0.0, 0.1, 0.25, 0.5, 0.75),
    "decay": (0.1, 0.2, 0.4, 0.7, 0.9, 1.0),
    "shrinkage": (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7),
    "beta": (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0),
}
DECADES = tuple(float(f"{step}e{decade}") for decade in range(-9, 9) for step in (1, 3))


def neighbours(point: dict[str, float]) -> list[dict[str, float]]:
    """Points that differ from this one in one option, which moves to the next rung of its ladder, upward first.

    Args:
        point: option -> number. Options not in `LADDERS` are positive.
    """
    found = []
    for name, value in point.items():
        ladder = LADDERS.get(name, DECADES)
        above = [rung for rung in ladder if rung > value][:1]
        below = [rung for rung in ladder if rung < value][-1:]
        found += [{**point, name: rung} for rung in above + below]
    return found
