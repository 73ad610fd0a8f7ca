"""Stationary problems are learnt."""

from dataclasses import replace

from studies import stationary


def test_depthwise_convolutions_whose_first_steps_amplify_each_other_are_learnt():
    problem = replace(stationary.PROBLEMS["depthwise"], epochs=(2,))
    ((_, loss),), _ = stationary.run(problem, stationary.METHODS["coincidence"], seed=0)
    assert loss < 1


def test_eight_layers_whose_inputs_hardly_vary_at_first_are_learnt():
    ((_, loss),), _ = stationary.run(stationary.PROBLEMS["eight layers"], stationary.METHODS["coincidence"], seed=0)
    assert loss < 0.5
