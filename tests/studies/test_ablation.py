"""Every method is its base with one choice changed, and a verdict says no more than the interval does."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies import ablation

from sp.lab.networks import mlp
from sp.rivals import OPTIMIZERS

EVERY = [(rule, stream) for rule, streams in ablation.STREAMS.items() for stream in streams]


@pytest.mark.parametrize(("rule", "stream"), EVERY)
def test_methods_differ_from_the_base_in_options_that_the_optimizer_takes(rule, stream):
    methods = ablation.methods(rule, stream, "digits", tuned=False)
    base = dict(methods[ablation.BASE].options)
    defaults = OPTIMIZERS[methods[ablation.BASE].optimizer](mlp(2, (2,), 2), **base).param_groups[0]
    for method, experiment in methods.items():
        group = OPTIMIZERS[experiment.optimizer](mlp(2, (2,), 2), **dict(experiment.options)).param_groups[0]
        changed = [name for name in group if name not in ("params", "shared") and group[name] != defaults[name]]
        changed += ["optimizer"] * (experiment.optimizer != methods[ablation.BASE].optimizer)
        pair = method in ablation.CHOICES[rule].get("pairs", {})
        assert len(changed) == (0 if method == ablation.BASE else 2 if pair else 1), method
    assert len(set(methods.values())) == len(methods)


def test_the_rate_of_every_method_of_the_published_rule_is_in_the_table_of_tuned_values():
    for stream in ablation.STREAMS["published"]:
        for method, experiment in ablation.methods("published", stream, "digits").items():
            assert "lr" in dict(experiment.options), method


def rows(differences):
    return pd.DataFrame(
        [
            {"method": method, "seed": seed, "average_accuracy": 0.5 + change}
            for method, changes in {ablation.BASE: [0.0] * 8, **differences}.items()
            for seed, change in enumerate(changes)
        ]
    )


def test_verdicts():
    noise = np.linspace(-0.002, 0.002, 8)
    wide = np.linspace(-0.2, 0.2, 8)
    table = ablation.effects(
        rows({"up": 0.05 + noise, "down": -0.05 + noise, "same": noise, "tiny": 0.004 + noise, "unclear": wide}), 0.01
    )
    found = dict(zip(table.method, table.verdict, strict=True))
    assert found == {"up": "better", "down": "worse", "same": "no matter", "tiny": "no matter", "unclear": "open"}
    text = ablation.side_by_side({"a stream": table})["a stream"]
    assert text.difference["up"].startswith("+0.050 [") and text.verdict["unclear"] == "open"


@given(st.lists(st.floats(-0.4, 0.4), min_size=8, max_size=8), st.floats(0.001, 0.1))
def test_a_verdict_agrees_with_its_interval(changes, margin):
    row = ablation.effects(rows({"method": changes}), margin).iloc[0]
    assert row["mean"] == pytest.approx(np.mean(changes), abs=1e-9)
    assert {
        "better": row.low > 0,
        "worse": row.high < 0,
        "no matter": -margin <= row.low and row.high <= margin,
        "open": row.high > margin or row.low < -margin or abs(row["mean"]) < margin,
    }[row.verdict]


def test_size_is_in_units_of_the_spread_of_paired_differences():
    change, level = np.linspace(0.01, 0.03, 8), np.linspace(-0.3, 0.3, 8)  # seeds differ more than methods do
    table = rows({"up": change})
    table["average_accuracy"] += level[table.seed]
    assert ablation.effects(table, 0.01)["size"].item() == pytest.approx(change.mean() / change.std(ddof=1))
