"""Do the optimizers learn ordinary problems, which never change, as well as Adam does?

Every method uses its defaults, nothing is tuned, and all methods get the same initial weights and the same order of
data. A row of the table is one problem after one training budget, a column is one method::

    python stationary.py --methods adam coincidence --problems friedman1 gru --seeds 0 1 2 --workers 2

Add your own method from a script or notebook::

    import stationary

    stationary.METHODS["lion"] = lambda model: Lion(model.parameters(), lr=3e-4)
    stationary.main(["--methods", "adam", "lion"])

Nothing is downloaded: the digits come with scikit-learn, the text with Python, and the rest is generated here.
"""

import argparse
import itertools
import string
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import joblib
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits, make_friedman1
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.optim import SGD, Adam, Optimizer

from sp import ConsolidatingPlasticityOptimizer, NMDACoincidence, SelectivePlasticityOptimizer
from sp.figures.tables import wide
from sp.lab import metrics
from sp.rivals import TITLES

Method = Callable[[nn.Module], Optimizer]
Data = tuple[Tensor, Tensor, Tensor, Tensor]  # training inputs and targets, test inputs and targets

METHODS: dict[str, Method] = {
    "adam": lambda model: Adam(model.parameters(), lr=1e-3),
    "sgd": lambda model: SGD(model.parameters(), lr=0.01, momentum=0.9),
    "published": lambda model: SelectivePlasticityOptimizer(model.parameters()),
    "diagonal": lambda model: ConsolidatingPlasticityOptimizer(model.parameters()),
    "coincidence": lambda model: ConsolidatingPlasticityOptimizer(
        model.parameters(), coincidence=NMDACoincidence(model)
    ),
}


# Data


def split(x: Tensor, y: Tensor, training: int) -> Data:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return x[:training], y[:training], x[training:], y[training:]


def standardised(values: Tensor) -> Tensor:
    return (values - values.mean(0)) / values.std(0)


def digits() -> Data:
    """1,000 training and 797 test digits, 64 standardised values each, and their classes.

    A pixel that is rarely lit has a large value when it is.
    """
    x, y = load_digits(return_X_y=True)
    x = standardised(torch.tensor(x).float()).nan_to_num()  # a pixel that is never lit has no deviation to divide by
    return split(x, torch.tensor(y), 1000)


def images() -> Data:
    """The same digits as images of shape (1, 8, 8) in [0, 1]."""
    x, y = load_digits(return_X_y=True)
    return split(torch.tensor(x / 16).float().reshape(-1, 1, 8, 8), torch.tensor(y), 1000)


def noisy_images() -> Data:
    """Images with normal noise of standard deviation 0.3, and the same images without it."""
    clean, _, clean_test, _ = images()
    generator = torch.Generator().manual_seed(0)
    noise, noise_test = (0.3 * torch.randn(part.shape, generator=generator) for part in (clean, clean_test))
    return clean + noise, clean, clean_test + noise_test, clean_test


def houses(unit: float = 1.0) -> Data:
    """A regression like California housing: 20,000 rows, 8 skewed and correlated features, interactions, 3 % noise.

    The targets have the standard deviation ``unit``.
    """
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(20_000, 8, generator=generator)
    z = 0.9 * z + 0.45 * z[:, :1]
    value = (
        1.5 * torch.tanh(z[:, 0])
        + torch.sin(2 * z[:, 1])
        + z[:, 2] * torch.tanh(z[:, 3])
        + 0.5 * torch.cos(z[:, 4] + z[:, 5])
        + torch.exp(-(z[:, 6].square() + z[:, 7].square()))
    )
    value = standardised(value) + 0.18 * torch.randn(20_000, generator=generator)
    return split(standardised(torch.exp(0.7 * z)), unit * standardised(value)[:, None], 16_000)


def friedman() -> Data:
    """2,000 training and 2,000 test rows; 96 % of the targets' variance can be predicted, the rest is noise."""
    x, y = make_friedman1(4000, 10, noise=1.0, random_state=0)
    return split(standardised(torch.tensor(x).float()), standardised(torch.tensor(y).float())[:, None], 2000)


CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation + " \n"


def text() -> Data:
    """12,800 training and 1,024 test sequences of 32 characters, and the character that follows each.

    The text is 400,000 characters of the language reference that Python's ``help()`` shows, the last tenth for the
    test. Its wording differs a little between versions of Python. One epoch is 400 steps of 32 sequences.
    """
    from pydoc_data.topics import topics

    index = {character: i for i, character in enumerate(CHARACTERS)}
    written = "\n".join(topics[name] for name in sorted(topics)).lower()
    codes = torch.tensor([index[character] for character in written if character in index][:400_000])
    starts = torch.randint(360_000 - 32, (12_800,), generator=torch.Generator().manual_seed(0))
    training = codes[starts[:, None] + torch.arange(33)]
    test = codes[360_000 + 32 * torch.arange(1024)[:, None] + torch.arange(33)]
    return training[:, :-1], training[:, 1:], test[:, :-1], test[:, 1:]


# Networks


def perceptron(*widths: int) -> nn.Sequential:
    layers = [layer for i, o in itertools.pairwise(widths) for layer in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten()),
        nn.Linear(32 * 4 * 4, 10),
    )


def depthwise() -> nn.Sequential:
    def separable(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs), nn.Conv2d(inputs, outputs, 1), nn.ReLU()

    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
        *(*separable(16, 32), nn.MaxPool2d(2)),
        *(*separable(32, 64), nn.Flatten()),
        nn.Linear(64 * 4 * 4, 10),
    )


def weight_normalised() -> nn.Sequential:
    first, second, out = nn.Linear(64, 100), nn.Linear(100, 100), nn.Linear(100, 10)
    return nn.Sequential(nn.Flatten(), weight_norm(first), nn.ReLU(), weight_norm(second), nn.ReLU(), out)


def eight_layers() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), perceptron(64, *7 * [100], 10))


class UNet(nn.Module):
    """(batch, 1, 8, 8) -> the same shape, via 4 x 4."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(1, 16, 3, padding=1)
        self.low = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.join = nn.Conv2d(32, 16, 3, padding=1)
        self.out = nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu(self.wide(x))
        low = self.up(self.low(F.max_pool2d(wide, 2)))
        return self.out(F.relu(self.join(torch.cat([wide, low], 1))))


class Recurrent(nn.Module):
    """Characters (batch, time) -> scores of the next (batch, time, characters); ``kind`` is nn.GRU or nn.LSTM."""

    def __init__(self, kind: type[nn.RNNBase]):
        super().__init__()
        self.embedding = nn.Embedding(len(CHARACTERS), 32)
        self.recurrent = kind(32, 128, batch_first=True)
        self.out = nn.Linear(128, len(CHARACTERS))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.recurrent(self.embedding(x))[0])


class EightGrams(nn.Module):
    """Characters (batch, time) -> scores of what follows every eight of them (batch, time - 7, characters)."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(CHARACTERS), 16)
        self.layers = perceptron(8 * 16, 128, 128, len(CHARACTERS))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.embedding(x.unfold(1, 8, 1)).flatten(2))


class Block(nn.Module):
    """Causal self-attention with four heads and a perceptron, each after a LayerNorm and with a residual connection."""

    def __init__(self, width: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, time_steps, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, time_steps, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(seen.transpose(1, 2).reshape(x.shape))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Characters (batch, time <= 32) -> scores of the next (batch, time, characters)."""

    def __init__(self, width: int = 64, depth: int = 2, context: int = 32):
        super().__init__()
        self.token, self.position = nn.Embedding(len(CHARACTERS), width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, len(CHARACTERS))

    def forward(self, x: Tensor) -> Tensor:
        x = self.token(x) + self.position(torch.arange(x.shape[1]))
        return self.out(self.norm(self.blocks(x)))


# Problems


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(-1) == targets).float().mean()


def r2(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of the targets' variance that the outputs explain: at most 1."""
    return 1 - F.mse_loss(outputs, targets) / targets.var(correction=0)


def next_character_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean nats per character. A network may begin late: its outputs are for the last characters."""
    return F.cross_entropy(outputs.transpose(1, 2), targets[:, -outputs.shape[1] :])


@dataclass(frozen=True)
class Problem:
    """Called with a method and a seed, it trains a new network and returns [(budget, metric on the test data), ...].

    The seed determines the initial weights and the order of the data. ``measure`` says what the metric is: accuracy,
    R2, or the loss itself, named nats if it is that of a language model. ``epochs`` are the budgets.
    """

    network: Callable[[], nn.Module]
    data: Callable[[], Data]
    epochs: Sequence[int]
    measure: str = "accuracy"
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    batch: int = 32

    def __call__(self, method: Method, seed: int) -> list[tuple[str, float]]:
        torch.manual_seed(seed)
        model, generator = self.network(), torch.Generator().manual_seed(seed)
        optimizer = method(model)
        x, y, x_test, y_test = self.data()
        metric = {"accuracy": accuracy, "R2": r2}.get(self.measure, self.loss)
        scores = []
        for epoch in range(1, max(self.epochs) + 1):
            model.train()
            for rows in torch.randperm(len(x), generator=generator).split(self.batch):
                optimizer.zero_grad()
                self.loss(model(x[rows]), y[rows]).backward()
                optimizer.step()
            if epoch in self.epochs:
                model.eval()
                with torch.no_grad():
                    scores.append((f"epoch {epoch}", metric(model(x_test), y_test).item()))
        return scores


regression = partial(Problem, epochs=(5, 40), measure="R2", loss=F.mse_loss, batch=64)
language = partial(Problem, data=text, epochs=(1,), measure="nats", loss=next_character_loss)

PROBLEMS: dict[str, Problem] = {
    "digits MLP": Problem(partial(perceptron, 64, 100, 100, 10), digits, (2, 10, 50)),
    "digits CNN": Problem(convolutional, images, (2, 10)),
    "batch 1": Problem(partial(perceptron, 64, 100, 100, 10), digits, (3,), batch=1),
    "houses": regression(partial(perceptron, 8, 64, 64, 1), houses),
    "houses x100": regression(partial(perceptron, 8, 64, 64, 1), partial(houses, unit=100.0)),
    "friedman1": regression(partial(perceptron, 10, 64, 64, 1), friedman, epochs=(5, 25), batch=32),
    "gru": language(partial(Recurrent, nn.GRU)),
    "lstm": language(partial(Recurrent, nn.LSTM)),
    "8-grams": language(EightGrams),
    "gpt": language(GPT),
    "depthwise": Problem(depthwise, images, (10,), "loss"),
    "eight layers": Problem(eight_layers, images, (5,), "loss"),
    "weight norm": Problem(weight_normalised, images, (5,), "loss"),
    "u-net": Problem(UNet, noisy_images, (10,), "loss", F.mse_loss),
}


# The table


def run(problem: Problem, method: Method, seed: int) -> tuple[list[tuple[str, float]], float]:
    """The scores, and the CPU seconds that they took."""
    torch.set_num_threads(1)
    start = time.process_time()
    return problem(method, seed), time.process_time() - start


def table(
    methods: dict[str, Method],
    problems: dict[str, Problem],
    seeds: Sequence[int] = (0,),
    workers: int = 1,
    out: str | None = None,
) -> list[dict]:
    """One dict per problem, budget, method and seed: its value, and the seconds that all budgets of the run took.

    ``out`` is a CSV file for the same rows, written after every run, so that stopping early keeps what is finished.
    """
    cases = list(itertools.product(seeds, problems, methods))
    runs = (joblib.delayed(run)(problems[problem], methods[method], seed) for seed, problem, method in cases)
    results = joblib.Parallel(workers, return_as="generator")(runs)
    rows = []
    for (seed, name, method), (scores, seconds) in zip(cases, results, strict=True):
        for budget, value in scores:
            key = {"problem": name, "budget": budget, "measure": problems[name].measure, "method": method, "seed": seed}
            rows.append({**key, "value": value, "seconds": round(seconds, 1)})
        if out:
            pd.DataFrame(rows).to_csv(out, index=False)
        print(f"{name}, {method}, seed {seed}: {value:.3f} in {seconds:.1f} s", file=sys.stderr, flush=True)
    return rows


def intervals(rows: pd.DataFrame) -> pd.DataFrame:
    """`sp.lab.metrics.interval_table` over seeds, with problems in ``method`` and methods in ``metric``, as the page of
    results shows it. There is no row if a seed diverged."""
    problems = rows.problem + ", " + rows.budget + ", " + rows.measure
    named = rows.assign(problem=problems, method=rows.method.replace(TITLES))
    finite = named.groupby(["problem", "method"]).value.transform(lambda of_seeds: of_seeds.notna().all())
    table = metrics.summarise(named[finite], ["problem", "method"], "value")
    return table.rename(columns={"method": "metric", "problem": "method"})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1, help="processes, with one thread each")
    parser.add_argument("--out", help="CSV file of all runs; a table with intervals is written beside it")
    chosen = parser.parse_args(arguments)
    methods = {name: METHODS[name] for name in chosen.methods}
    problems = {name: PROBLEMS[name] for name in chosen.problems}
    found = intervals(pd.DataFrame(table(methods, problems, chosen.seeds, chosen.workers, chosen.out)))
    print(wide(found).to_string())
    if chosen.out:
        found.to_csv(Path(chosen.out).with_stem(f"{Path(chosen.out).stem}_table"), index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
