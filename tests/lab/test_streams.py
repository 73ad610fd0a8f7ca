"""Streams of tasks: every image in its place, the same for the same seed, and user-supplied streams."""

import pickle
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sp.lab import data
from sp.lab.data import Dataset, load, make_stream

KINDS, SCENARIOS = ("split", "permuted", "rotated"), ("class", "domain", "task")


@pytest.fixture
def numbered() -> Dataset:
    """Every value tells where it comes from: value // 16 is the image (tests from 200 on), value % 16 the pixel."""
    x = torch.arange(250 * 16, dtype=torch.float32).reshape(250, 16)
    y = torch.arange(250) % 10
    return Dataset("numbered", x[:200], y[:200], x[200:], y[200:], (4, 4), 10)


def image_numbers(x: torch.Tensor) -> list[int]:
    return (x[:, 0] // 16).long().tolist()


def all_tensors(stream: data.Tasks) -> list[torch.Tensor]:
    return [tensor for task in stream.tasks for part in (task.train, task.test) for tensor in part()]


@pytest.mark.parametrize("tasks", [1, 2, 5, 10])
def test_split_divides_the_images_by_class_in_order(tasks: int, numbered: Dataset):
    stream = make_stream(numbered, "split", tasks, "class", seed=0)
    train, test = [], []
    for number, task in enumerate(stream.tasks):
        owned = set(range(number * 10 // tasks, (number + 1) * 10 // tasks))
        for part, seen in ((task.train, train), (task.test, test)):
            numbers = image_numbers(part()[0])
            assert {n % 10 for n in numbers} == owned
            seen += numbers
    assert sorted(train) == list(range(200)) and sorted(test) == list(range(200, 250))


@pytest.mark.parametrize(
    ("kind", "scenario", "units", "task_labels", "outputs"),
    [
        ("split", "class", 10, {2, 3}, None),
        ("split", "domain", 2, {0, 1}, None),
        ("split", "task", 10, {0, 1}, (2, 3)),
        ("permuted", "class", 50, set(range(10, 20)), None),
        ("permuted", "domain", 10, set(range(10)), None),
        ("permuted", "task", 50, set(range(10)), tuple(range(10, 20))),
        ("rotated", "class", 50, set(range(10, 20)), None),
        ("rotated", "domain", 10, set(range(10)), None),
        ("rotated", "task", 50, set(range(10)), tuple(range(10, 20))),
    ],
)
def test_labels_of_the_second_of_five_tasks(
    kind: str, scenario: str, units: int, task_labels: set[int], outputs: tuple[int, ...] | None, numbered: Dataset
):
    stream = make_stream(numbered, kind, 5, scenario, seed=0)
    task = stream.tasks[1]
    assert stream.outputs == units and task.outputs == outputs
    for _, y in (task.train(), task.test()):
        assert set(y.tolist()) == task_labels
        assert len(set(y.bincount()[min(task_labels) :].tolist())) == 1


def test_labels_belong_to_their_images(numbered: Dataset):
    x, y = make_stream(numbered, "split", 5, "domain", seed=0, samples_per_task=13).tasks[3].train()
    assert [n % 10 - 6 for n in image_numbers(x)] == y.tolist()
    x, y = make_stream(numbered, "permuted", 3, "class", seed=0, samples_per_task=13).tasks[2].train()
    assert [n % 10 + 20 for n in image_numbers(x)] == y.tolist()


def test_permutations_are_permutations_each_its_own_and_the_same_for_training_and_test(numbered: Dataset):
    stream = make_stream(numbered, "permuted", 6, "domain", seed=3)
    orders = []
    for task in stream.tasks:
        order = task.train()[0][0] % 16
        assert sorted(order.tolist()) == list(range(16))
        assert all((x % 16 == order).all() for x, _ in (task.train(), task.test()))
        orders.append(tuple(order.tolist()))
    assert len(set(orders)) == 6 and orders[0] == tuple(range(16))


def test_permutations_do_not_depend_on_what_comes_later(numbered: Dataset):
    short = make_stream(numbered, "permuted", 3, "domain", seed=3)
    long = make_stream(numbered, "permuted", 30, "domain", seed=3, samples_per_task=5)
    assert all(torch.equal(a.test()[0], b.test()[0]) for a, b in zip(short.tasks, long.tasks[:3], strict=True))


def test_rotation_is_counter_clockwise_and_spread_over_half_a_turn():
    digits = load("digits")
    quarters = make_stream(digits, "rotated", 2, "domain", seed=0)
    assert torch.equal(quarters.tasks[0].train()[0], digits.train_x)
    upright, turned = (task.test()[0].reshape(-1, 8, 8) for task in quarters.tasks)
    assert torch.allclose(turned, upright.rot90(1, (1, 2)), atol=1e-4)
    assert [task.name for task in make_stream(digits, "rotated", 4, "domain", seed=0).tasks] == [
        *("0 degrees", "45 degrees", "90 degrees", "135 degrees")
    ]


def test_rotation_is_even_and_fills_corners_with_background():
    digits = load("digits")
    background = digits.train_x.min()
    eighth = make_stream(digits, "rotated", 4, "domain", seed=0).tasks[1].train()[0].reshape(-1, 8, 8)
    assert torch.allclose(eighth[:, 0, 0], background) and torch.allclose(eighth[:, 7, 7], background)
    assert eighth.min() >= background - 1e-5 and eighth.max() <= digits.train_x.max() + 1e-5
    # An image that does not change under a quarter turn looks the same at 45 and 135 degrees.
    x = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0))
    x = sum(x.rot90(k, (1, 2)) for k in range(4)).flatten(1)
    shape, low = (6, 6), float(x.min())
    assert torch.allclose(data._rotate(x, shape, low, 45), data._rotate(x, shape, low, 135), atol=1e-4)


def test_rotation_of_an_oblong_image_keeps_distances():
    x = torch.zeros(1, 5, 9)
    x[0, 2, 6] = 1
    turned = data._rotate(x.flatten(1), (5, 9), 0.0, 90.0).reshape(5, 9)
    assert turned[0, 4] == pytest.approx(1, abs=1e-5) and turned.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_per_task_are_drawn_anew_for_each_task(kind: str, numbered: Dataset):
    stream = make_stream(numbered, kind, 5, "class", seed=0, samples_per_task=30)
    full = make_stream(numbered, kind, 5, "class", seed=0)
    drawn = []
    for task, whole in zip(stream.tasks, full.tasks, strict=True):
        rows = {tuple(row) for row in task.train()[0].tolist()}
        assert len(rows) == len(task.train()[1]) == 30
        assert rows <= {tuple(row) for row in whole.train()[0].tolist()}
        assert torch.equal(task.test()[0], whole.test()[0])
        drawn.append(tuple(task.train()[1].tolist()))
    assert len(set(drawn)) == 5


@pytest.mark.parametrize(("name", "held_out"), [("numbered", 20), ("digits", 40)])
def test_validation_holds_out_the_end_of_the_training_set(name: str, held_out: int, numbered: Dataset):
    dataset = Dataset(name, *(getattr(numbered, f) for f in ("train_x", "train_y", "test_x", "test_y")), (4, 4), 10)
    for kind in ("split", "permuted"):
        stream = make_stream(dataset, kind, 2, "class", seed=0, evaluation="validation")
        train = {n for task in stream.tasks for n in image_numbers(task.train()[0])}
        test = {n for task in stream.tasks for n in image_numbers(task.test()[0])}
        assert train == set(range(200 - held_out)) and test == set(range(200 - held_out, 200))


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("kind", KINDS)
def test_equal_arguments_give_equal_streams_and_leave_the_global_generator_alone(
    kind: str, scenario: str, numbered: Dataset
):
    before = torch.random.get_rng_state()
    first, second = (
        all_tensors(make_stream(numbered, kind, 5, scenario, seed=7, samples_per_task=20)) for _ in range(2)
    )
    assert all(map(torch.equal, first, second))
    assert torch.equal(torch.random.get_rng_state(), before)
    other = all_tensors(make_stream(numbered, kind, 5, scenario, seed=8, samples_per_task=20))
    assert not all(map(torch.equal, first, other))


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_task_returns_is_the_callers_own(kind: str, numbered: Dataset):
    stream = make_stream(numbered, kind, 2, "class", seed=0)
    base = [t.clone() for t in (numbered.train_x, numbered.train_y, numbered.test_x, numbered.test_y)]
    before = [tensor.clone() for tensor in all_tensors(stream)]
    for tensor in all_tensors(stream):
        tensor.zero_()
    assert all(map(torch.equal, all_tensors(stream), before))
    assert all(map(torch.equal, (numbered.train_x, numbered.train_y, numbered.test_x, numbered.test_y), base))


def test_a_stream_travels_to_another_process_and_holds_no_copies_of_the_images(numbered: Dataset):
    stream = make_stream(numbered, "permuted", 30, "task", seed=0)
    content = pickle.dumps(stream)
    assert all(map(torch.equal, all_tensors(stream), all_tensors(pickle.loads(content))))
    assert len(content) < 30 * numbered.train_x.nbytes


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS),
    tasks=st.sampled_from((1, 2, 5)),
    scenario=st.sampled_from(SCENARIOS),
    seed=st.integers(0, 2**63 - 1),
    samples=st.none() | st.integers(1, 36),
    evaluation=st.sampled_from(("test", "validation")),
)
def test_every_stream_is_sound(
    kind: str, tasks: int, scenario: str, seed: int, samples: int | None, evaluation: str, numbered: Dataset
):
    stream = make_stream(numbered, kind, tasks, scenario, seed, samples, evaluation)
    assert (len(stream.tasks), stream.inputs, stream.image_shape) == (tasks, 16, (4, 4))
    assert len({task.name for task in stream.tasks}) == tasks
    for task in stream.tasks:
        units = range(stream.outputs) if task.outputs is None else task.outputs
        assert set(units) <= set(range(stream.outputs))
        for x, y in (task.train(), task.test()):
            assert x.shape == (len(y), 16) and x.dtype == torch.float32 and y.dtype == torch.int64
            assert y.min() >= 0 and y.max() < len(units)
        assert samples is None or len(task.train()[1]) == samples


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "shuffled"}, "kind must be one of 'split', 'permuted', 'rotated', got 'shuffled'"),
        ({"scenario": "online"}, "scenario must be one of 'class', 'domain', 'task', got 'online'"),
        ({"evaluation": "train"}, "evaluation must be one of 'test', 'validation', got 'train'"),
        ({"tasks": 3}, "tasks must divide the 10 classes of numbered, got 3"),
        ({"tasks": 20}, "tasks must divide the 10 classes of numbered, got 20"),
        ({"tasks": 0}, "tasks must be a whole number >= 1, got 0"),
        ({"tasks": 2.0}, "tasks must be a whole number >= 1, got 2.0"),
        ({"tasks": 10, "scenario": "domain"}, "tasks must leave each task at least two classes"),
        ({"tasks": 10, "scenario": "task"}, "tasks must leave each task at least two classes"),
        ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
        ({"seed": None}, "seed must be a whole number >= 0, got None"),
        ({"samples_per_task": 0}, "samples_per_task must be a whole number >= 1"),
        ({"samples_per_task": 41}, "samples_per_task must be at most 40, the number of images in numbered for task 0"),
        ({"samples_per_task": 37, "evaluation": "validation"}, "samples_per_task must be at most 36"),
    ],
)
def test_arguments_out_of_range_are_named(changed: dict[str, object], message: str, numbered: Dataset):
    arguments = {"dataset": numbered, "kind": "split", "tasks": 5, "scenario": "class", "seed": 0, **changed}
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        make_stream(**arguments)


def test_a_task_without_test_images_is_an_error(numbered: Dataset):
    few = Dataset("few", numbered.train_x, numbered.train_y, numbered.test_x[:5], numbered.test_y[:5], (4, 4), 10)
    with pytest.raises(ValueError, match=r"at most 0, the number of images in few for task 3 \(classes 6-7\).*fewer t"):
        make_stream(few, "split", 5, "class", seed=0)
