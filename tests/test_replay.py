"""The replay buffer: what each policy keeps, that copies are not kept twice, and that it continues bit for bit."""

import io
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sp.replay import POLICIES, ReplayBuffer


def stream(start, stop, classes=10):
    """Examples start .. stop - 1, each known by its number."""
    numbers = torch.arange(start, stop)
    return numbers.float().unsqueeze(1) * torch.tensor([1.0, 0.5]), numbers % classes


def held(buffer):
    """The numbers of the examples held, in slot order."""
    state = buffer.state_dict()
    return [] if state["x"] is None else state["x"][:, 0].int().tolist()


@settings(max_examples=60, deadline=None)
@given(
    policy=st.sampled_from(POLICIES),
    distinct=st.booleans(),
    capacity=st.integers(1, 12),
    batches=st.lists(st.lists(st.integers(0, 20), max_size=15), max_size=6),
)
def test_invariants(policy, distinct, capacity, batches):
    buffer = ReplayBuffer(capacity, policy, distinct)
    met = Counter()
    for batch in batches:
        numbers = torch.tensor(batch, dtype=torch.long)
        before = set(held(buffer))
        buffer.add(numbers.float().unsqueeze(1), numbers % 3)
        met.update((set(batch) - before) if distinct else batch)
        now = held(buffer)
        assert buffer.seen == met.total()
        assert len(buffer) == len(now) == min(capacity, met.total())
        assert set(now) <= set(met)
        assert not distinct or len(set(now)) == len(now)
        assert sum(buffer.class_counts().values()) == len(buffer)
        if not distinct and policy != "fifo":
            assert Counter(now) <= met


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("distinct", [True, False])
def test_how_the_stream_is_cut_does_not_matter(policy, distinct):
    x, y = stream(0, 200)
    whole, cut = ReplayBuffer(30, policy, distinct), ReplayBuffer(30, policy, distinct)
    whole.add(x, y)
    for start, stop in ((0, 1), (1, 50), (50, 50), (50, 53), (53, 200)):
        cut.add(x[start:stop], y[start:stop])
    assert held(whole) == held(cut)


@pytest.mark.parametrize(
    ("policy", "content", "drawn"),
    [
        ("reservoir", [65, 41, 36, 27, 4, 5], [1, 1, 3]),
        ("class_balanced", [83, 53, 2, 55, 80, 33], [1, 3, 3]),
        ("fifo", [94, 95, 96, 97, 98, 99], [3, 2, 1]),
    ],
)
def test_a_seed_keeps_and_draws_what_it_always_did(policy, content, drawn):
    """Stored results with replay stay valid only as long as this does."""
    buffer = ReplayBuffer(6, policy, seed=7)
    for start in range(0, 90, 30):  # ten of each forty come twice
        buffer.add(*stream(start, start + 40, classes=4))
    assert held(buffer) == content
    assert buffer.sample(3)[1].tolist() == drawn


def test_reservoir_is_uniform():
    stays = torch.zeros(50)
    repeats = 1000
    for seed in range(repeats):
        buffer = ReplayBuffer(10, seed=seed)
        for start in range(0, 50, 7):
            buffer.add(*stream(start, min(start + 7, 50)))
        stays[held(buffer)] += 1
    # Draws of 10 out of 50 without replacement vary less than independent ones, by 1 - 10/50.
    statistic = ((stays - repeats / 5) ** 2 / (repeats / 5 * 0.8)).sum().item()
    assert 0.001 < stats.chi2.sf(statistic * 49 / 50, df=49) < 0.999


def test_fifo_keeps_the_latest():
    buffer = ReplayBuffer(5, "fifo")
    for start in range(0, 12, 3):
        buffer.add(*stream(start, start + 3))
    assert sorted(held(buffer)) == [7, 8, 9, 10, 11]
    buffer.add(*stream(20, 40))
    assert sorted(held(buffer)) == [35, 36, 37, 38, 39]


def test_class_balanced_evens_out_a_skewed_stream():
    x = torch.arange(3000.0).unsqueeze(1)
    y = torch.cat([torch.zeros(2700, dtype=torch.long), torch.ones(200, dtype=torch.long), torch.full((100,), 2)])
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    balanced, plain = ReplayBuffer(150, "class_balanced"), ReplayBuffer(150)
    for rows in order.split(64):
        balanced.add(x[rows], y[rows])
        plain.add(x[rows], y[rows])
    assert set(balanced.class_counts().values()) == {50}
    assert plain.class_counts()[0] > 120


def test_class_balanced_keeps_a_small_class_whole_and_samples_a_large_one_uniformly():
    early = 0
    for seed in range(300):
        buffer = ReplayBuffer(20, "class_balanced", seed=seed)
        for start in range(0, 100, 20):
            buffer.add(*stream(start, start + 20, classes=1))
        rare_x, _ = stream(1000, 1003)
        buffer.add(rare_x, torch.ones(3, dtype=torch.long))
        assert buffer.class_counts() == {0: 17, 1: 3}
        early += sum(number < 50 for number in held(buffer))
    assert stats.binomtest(early, 300 * 17, 0.5).pvalue > 0.001


def published_loop(policy, distinct=None, replayed=32):
    """Task A, then task B, 4,000 examples each; each batch and its replayed examples are added together."""
    buffer = ReplayBuffer(2000, policy, distinct)
    x, y = stream(0, 8000)
    for rows in torch.arange(8000).split(128):
        batch_x, batch_y = x[rows], y[rows]
        if len(buffer) and replayed:
            old_x, old_y = buffer.sample(replayed)
            batch_x, batch_y = torch.cat([batch_x, old_x]), torch.cat([batch_y, old_y])
        buffer.add(batch_x, batch_y)
    return buffer


@pytest.mark.parametrize("policy", ["reservoir", "class_balanced"])
def test_the_published_loop_keeps_half_of_the_old_task(policy):
    buffer = published_loop(policy)
    assert buffer.seen == 8000
    assert len(set(held(buffer))) == 2000
    assert 900 < sum(number < 4000 for number in held(buffer)) < 1100
    assert held(buffer) == held(published_loop(policy, replayed=0)), "what is replayed must not change what is kept"


def test_the_published_loop_flushes_a_fifo():
    buffer = published_loop("fifo")
    kept = set(held(buffer))
    assert sum(number < 4000 for number in kept) < 100
    assert len(kept) < 2000


def test_a_plain_reservoir_fills_with_copies_in_the_published_loop():
    assert len(set(held(published_loop("reservoir", distinct=False)))) < 1900


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.arange(20 * 3 * 5 * 5, dtype=torch.uint8).reshape(20, 3, 5, 5), torch.arange(20)),
        (torch.rand(20, 3, 4, 4).to(memory_format=torch.channels_last), torch.arange(20, dtype=torch.int32)),
        (torch.rand(20, 7, dtype=torch.float64), torch.rand(20, 4)),
        (torch.rand(20, 3).bfloat16(), torch.rand(20, 2, 2, dtype=torch.float64)),
        (torch.rand(20), torch.arange(20) % 2 == 0),
        (torch.randn(20, 2, dtype=torch.complex64), torch.arange(20, dtype=torch.int16)),
        (torch.arange(10 * 21, dtype=torch.uint8).reshape(21, 10)[1:], torch.arange(20)),
        (torch.arange(8 * 20 + 3, dtype=torch.uint8)[3:].reshape(20, 8), torch.arange(20)),
        (torch.rand(9, 20).T, torch.arange(40)[::2]),
        (torch.full((20, 2), float("nan")), torch.arange(20)),
    ],
)
def test_any_shape_and_dtype_comes_back_as_it_was(x, y):
    buffer = ReplayBuffer(50)
    buffer.add(x, y)
    buffer.add(x, y)
    assert len(buffer) == buffer.seen == 20
    sample_x, sample_y = buffer.sample(20)
    assert (sample_x.shape, sample_x.dtype, sample_y.shape, sample_y.dtype) == (x.shape, x.dtype, y.shape, y.dtype)
    state = buffer.state_dict()
    assert torch.equal(state["x"].nan_to_num(7), x.nan_to_num(7))
    assert torch.equal(state["y"], y)


def test_an_example_is_its_x_and_its_y():
    buffer = ReplayBuffer(10)
    x = torch.zeros(4, 2)
    buffer.add(x, torch.tensor([0, 1, 0, 1]))
    assert len(buffer) == 2
    buffer.add(x[:1], torch.tensor([2]))
    assert buffer.class_counts() == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize("policy", POLICIES)
def test_bytes_tell_examples_apart_and_one_that_left_is_new_again(policy):
    buffer = ReplayBuffer(3, policy, distinct=True)
    apart = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]])
    labels = torch.zeros(3, dtype=torch.long)
    buffer.add(apart, labels)
    assert len(buffer) == buffer.seen == 3
    for seen, number in enumerate(range(100, 200), start=4):
        buffer.add(torch.full((1, 2), float(number)), labels[:1])
        assert buffer.seen == seen
    held_now = buffer.state_dict()["x"][:, 0].tolist()
    buffer.add(buffer.state_dict()["x"], labels)
    assert buffer.seen == 103 and buffer.state_dict()["x"][:, 0].tolist() == held_now
    left = next(number for number in range(100, 200) if number not in held_now)
    buffer.add(torch.full((1, 2), float(left)), labels[:1])
    assert buffer.seen == 104


def test_one_huge_batch_of_equal_rows():
    buffer = ReplayBuffer(10)
    buffer.add(torch.zeros(5000, 4), torch.zeros(5000))
    assert len(buffer) == buffer.seen == 1


def test_sample_is_without_replacement_uniform_and_bounded():
    buffer = ReplayBuffer(100)
    buffer.add(*stream(0, 40))
    x, y = buffer.sample(100)
    assert x.shape == (40, 2) and y.shape == (40,)
    assert sorted(x[:, 0].tolist()) == list(range(40))
    assert x[:, 0].tolist() != list(range(40))
    assert buffer.sample(0)[0].shape == (0, 2)
    drawn = torch.stack([buffer.sample(5)[0][:, 0] for _ in range(800)]).long().flatten()
    assert stats.chisquare(drawn.bincount(minlength=40)).pvalue > 0.001


def test_nothing_is_shared_with_the_caller():
    buffer = ReplayBuffer(10)
    x, y = stream(0, 10)
    weight = torch.ones(2, requires_grad=True)
    buffer.add(x * weight, y)
    y.zero_()
    sample_x, _ = buffer.sample(10)
    assert not sample_x.requires_grad
    sample_x.zero_()
    state = buffer.state_dict()
    state["y"].zero_()
    assert held(buffer) == list(range(10))
    assert set(buffer.class_counts()) == set(range(10))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_global_random_state_is_neither_read_nor_changed(policy):
    contents = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        buffer = ReplayBuffer(20, policy, seed=5)
        buffer.add(*stream(0, 100))
        contents.append((held(buffer), buffer.sample(5)[1].tolist()))
        assert torch.equal(before, torch.get_rng_state())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("policy", ["reservoir", "class_balanced"])
def test_seeds_differ(policy):
    buffers = [ReplayBuffer(20, policy, seed=seed) for seed in (0, 1)]
    for buffer in buffers:
        buffer.add(*stream(0, 100))
    assert held(buffers[0]) != held(buffers[1])


@settings(max_examples=20, deadline=None)
@given(policy=st.sampled_from(POLICIES), distinct=st.booleans(), stop_at=st.integers(0, 9))
def test_resuming_equals_never_stopping(policy, distinct, stop_at):
    x, y = stream(0, 100, classes=4)
    through = ReplayBuffer(25, policy, distinct, seed=3)
    stopped = ReplayBuffer(25, policy, distinct, seed=3)
    for step, rows in enumerate(torch.arange(100).split(10)):
        if step == stop_at:
            file = io.BytesIO()
            torch.save(stopped.state_dict(), file)
            file.seek(0)
            stopped = ReplayBuffer(25, policy, distinct, seed=99)
            stopped.add(torch.zeros(1, 7), torch.zeros(1, dtype=torch.long))
            stopped.load_state_dict(torch.load(file, weights_only=True))
        for buffer in (through, stopped):
            buffer.add(torch.cat([x[rows], x[rows // 2]]), torch.cat([y[rows], y[rows // 2]]))
        for one, other in zip(through.sample(6), stopped.sample(6), strict=True):
            assert torch.equal(one, other)
    assert held(through) == held(stopped)
    assert through.seen == stopped.seen


def test_a_state_for_another_buffer_is_refused():
    state = ReplayBuffer(10).state_dict()
    with pytest.raises(ValueError, match="state has capacity=10 but this buffer has capacity=20; make the buffer with"):
        ReplayBuffer(20).load_state_dict(state)
    with pytest.raises(ValueError, match="policy='reservoir'"):
        ReplayBuffer(10, "fifo").load_state_dict(state)
    with pytest.raises(ValueError, match="distinct=True"):
        ReplayBuffer(10, distinct=False).load_state_dict(state)


def test_storage_is_taken_once():
    buffer = ReplayBuffer(30)
    assert len(buffer) == 0 and buffer.class_counts() == {}
    buffer.add(*stream(0, 10))
    address = buffer._x.data_ptr()
    for start in range(10, 500, 70):
        buffer.add(*stream(start, start + 70))
    assert buffer._x.data_ptr() == address
    assert len(buffer._x) == len(buffer) == len(buffer._content) == len(buffer._held) == 30


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("policy", POLICIES)
def test_cuda_holds_what_the_cpu_holds(policy):
    here, there = ReplayBuffer(20, policy), ReplayBuffer(20, policy)
    for start in (0, 5, 60):
        x, y = stream(start, start + 70)
        here.add(x, y)
        there.add(x.cuda(), y)
    assert there.sample(3)[1].is_cuda
    assert held(here) == held(there)


@pytest.mark.parametrize("capacity", [0, -1, 2.5, True, "many", None])
def test_capacity_must_be_a_positive_whole_number(capacity):
    with pytest.raises((ValueError, TypeError), match=f"capacity must be a whole number.*got {capacity!r}"):
        ReplayBuffer(capacity)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="'reservoir', 'class_balanced', 'fifo', got 'lifo'"):
        ReplayBuffer(policy="lifo")


def test_wrong_batches_are_refused_and_change_nothing():
    buffer = ReplayBuffer(10)
    x, y = stream(0, 5)
    buffer.add(x, y)
    with pytest.raises(ValueError, match="got 5 rows of x and 4 rows of y"):
        buffer.add(x, y[:4])
    with pytest.raises(ValueError, match=r"x has rows of shape \(3,\).*holds rows of shape \(2,\)"):
        buffer.add(torch.zeros(5, 3), y)
    with pytest.raises(ValueError, match=r"x has rows .*torch.float64; .*torch.float32: convert x"):
        buffer.add(x.double(), y)
    with pytest.raises(ValueError, match=r"y has rows of shape \(2,\)"):
        buffer.add(x, torch.zeros(5, 2, dtype=torch.long))
    with pytest.raises(TypeError, match="x must be a tensor; got list: make one of it"):
        buffer.add([[0.0, 0.0]], y)
    with pytest.raises(ValueError, match="y must hold a batch"):
        buffer.add(x, torch.tensor(1))
    assert held(buffer) == [0, 1, 2, 3, 4]


def test_wrong_samples_are_refused():
    buffer = ReplayBuffer(10)
    with pytest.raises(ValueError, match=r"empty: call add\(x, y\) before"):
        buffer.sample(3)
    buffer.add(*stream(0, 5))
    for n in (-1, 1.5):
        with pytest.raises((ValueError, TypeError), match=f"n must be a whole number.*got {n}"):
            buffer.sample(n)


def test_labels_are_needed_where_classes_matter():
    x, _ = stream(0, 5)
    for y in (torch.rand(5), torch.zeros(5, 2, dtype=torch.long)):
        with pytest.raises(ValueError, match="one integer label per example for policy='class_balanced'"):
            ReplayBuffer(10, "class_balanced").add(x, y)
    buffer = ReplayBuffer(10)
    buffer.add(x, torch.zeros(5, 2))
    with pytest.raises(ValueError, match="class_counts needs one label per example"):
        buffer.class_counts()


def test_a_buffer_that_was_filled_in_inference_mode_serves_training():
    buffer = ReplayBuffer(4)
    with torch.inference_mode():
        buffer.add(torch.randn(2, 3), torch.arange(2))
    buffer.add(torch.randn(6, 3), torch.arange(6))
    x, _ = buffer.sample(4)
    weight = torch.ones(3, requires_grad=True)
    (x @ weight).sum().backward()
    assert weight.grad is not None
