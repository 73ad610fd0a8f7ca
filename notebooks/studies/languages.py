"""Languages learnt one after another, from word lists (notebook 16).

``python notebooks/studies languages`` runs what the notebook shows. The words come from ``wordfreq`` 3.1 (Speer 2022),
which is in the extra ``text``. It is not needed to read kept runs.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sp
from sp.lab.data import Evaluation, Tasks
from sp.lab.experiment import METHOD_VERSIONS, Experiment, Moment, Result, run
from sp.lab.networks import transformer_block
from sp.lab.streams import Stream
from sp.lab.sweep import Named, with_seeds
from sp.rivals import TITLES, GradientLearner
from studies.own_data import Part, Source, Tuning, named

# In the order in which they come, five at a time.
LANGUAGES = (
    *("en", "fr", "de", "es", "it", "pt", "nl", "sv", "pl", "fi"),
    *("da", "cs", "hu", "ro", "tr", "nb", "ca", "sk", "id", "lt"),
    *("sl", "lv", "is", "sh", "vi", "ru", "uk", "bg", "mk", "el"),
)
FIVE = 5
WORDS = 4000  # per language, the most frequent ones
LENGTH = 24  # letters in a piece
PIECES = {10: (2000, 200), 30: (800, 200)}  # number of languages -> pieces per language, to train and to test on
SPELT, SPELT_PIECES = 32, (1000, 100)  # the same for next-letter prediction
SPELLED = LANGUAGES[:FIVE]
MISSING = (
    "lists of words come from wordfreq, which is not installed: pip install 'selective-plasticity[text]', or from a "
    "checkout  pip install -e '.[text]'"
)

Pieces = tuple[np.ndarray, np.ndarray]


def pieces(words: Sequence[str], length: int, counts: tuple[int, int], seed: int) -> tuple[list[str], list[str]]:
    """Pieces of text to train and to test on, each made of words in random order; no word is in both.

    Args:
        words: the words of one language, most frequent first. length: letters in a piece, including spaces.
        counts: number of pieces to train and to test on. seed: for the order of the words.
    """
    generator, found = np.random.default_rng(seed), []
    test = list(words[4::5])
    for own, count in zip(([word for i, word in enumerate(words) if i % 5 != 4], test), counts, strict=True):
        text = ""
        while len(text) < (count + 1) * length:
            text += " ".join(generator.permutation(own)) + " "
        found.append([text[start : start + length] for start in range(0, count * length, length)])
    return found[0], found[1]


def coded(texts: Sequence[str], letters: str) -> np.ndarray:
    """Pieces of text as letter indices, (n, length); 0 stands for a letter that is not in ``letters``."""
    number = {letter: place for place, letter in enumerate(letters, 1)}
    return np.array([[number.get(letter, 0) for letter in text] for text in texts])


@cache
def words_of(language: str) -> tuple[str, ...]:
    """The most frequent words made of letters only, at least two, most frequent first.

    Raises:
        ImportError: ``wordfreq`` is not installed.
    """
    try:
        from wordfreq import top_n_list
    except ImportError as error:
        raise ImportError(MISSING) from error
    words = top_n_list(language, 2 * WORDS)
    return tuple(word for word in words if word.isalpha() and len(word) > 1)[:WORDS]


def letters_of(languages: Sequence[str]) -> str:
    """All letters in the words of these languages, in a fixed order."""
    return "".join(sorted({" ", *(letter for language in languages for word in words_of(language) for letter in word)}))


def telling(languages: Sequence[str], evaluation: Evaluation) -> Tasks:
    """Tasks to identify a text's language; new languages come in fives, and classes are numbered over all of them."""
    letters, tasks = letters_of(languages), []
    for start in range(0, len(languages), FIVE):
        found = [pieces(words_of(languages[c]), LENGTH, PIECES[len(languages)], c) for c in range(start, start + FIVE)]
        task = []
        for part in zip(*found, strict=True):
            task += [np.concatenate([coded(texts, letters) for texts in part])]
            task += [np.repeat(np.arange(start, start + FIVE), len(part[0]))]
        tasks.append(task)
    return Stream.from_arrays(tasks, outputs=len(languages)).arrays.tasks_for(evaluation)


def spelling(languages: Sequence[str], evaluation: Evaluation) -> Tasks:
    """Tasks to predict the next letter of a text, one language after another."""
    letters, tasks = letters_of(languages), []
    for number, language in enumerate(languages):
        texts = [coded(part, letters) for part in pieces(words_of(language), SPELT + 1, SPELT_PIECES, number)]
        tasks.append([half for text in texts for half in (text[:, :-1], text[:, 1:])])
    stream = Stream.from_arrays(tasks, scenario="domain", outputs=len(letters) + 1)
    return stream.arrays.tasks_for(evaluation)


class Recurrent(nn.Module):
    """Letters (B, T) pass through an embedding, a GRU, and a readout of the mean of its states or of every state."""

    def __init__(self, letters: int, outputs: int, width: int = 64, every: bool = False):
        super().__init__()
        self.embed = nn.Embedding(letters + 1, 32)
        self.gru = nn.GRU(32, width, batch_first=True)
        self.head = nn.Linear(width, outputs)
        self.every = every

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.gru(self.embed(x))
        return self.head(states if self.every else states.mean(1))


class Transformer(nn.Module):
    """Letters (B, T) pass through an embedding with positions, an attention block, and a readout of the mean."""

    def __init__(self, letters: int, outputs: int, length: int = LENGTH, width: int = 64):
        super().__init__()
        self.embed = nn.Embedding(letters + 1, width)
        self.place = nn.Parameter(torch.randn(length, width) * 0.1)
        self.block = transformer_block(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x) + self.place).mean(1))


class Growing(GradientLearner):
    """A head that grows by five outputs when it meets a language it has none for; it is not told when that happens."""

    def learn(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        needed = FIVE * (int(y.max()) // FIVE + 1)
        if needed > self.model.head.out_features:
            sp.grow_outputs(self.model.head, needed, self.optimizer)
        super().learn(x, y, allowed)


# Networks by name. The number of letters follows from the languages, so that naming a network loads nothing.
NETWORKS = {"GRU": Recurrent, "Transformer": Transformer}
# Versions of networks and of streams; raise one when what it produces changes.
NETWORK_VERSIONS, VERSION = {"GRU": 1, "Transformer": 2}, 1
BUFFER = 500  # pieces, or 100 texts

# Points to tune on, the same number for each method.
_RATES = [{"lr": lr} for lr in (1e-3, 3e-3, 1e-2, 3e-2)]
GRIDS = {
    "Adam": _RATES,
    "EWC": [{"lr": lr, "strength": strength} for lr in (3e-3, 1e-2) for strength in (1e2, 1e3)],
    "Adam + replay": _RATES,
    "Consolidation": [{"lr": lr} for lr in (0.03, 0.1, 0.3, 1.0)],
}
TUNING_SEEDS = (100,)


def _network(name: str, languages: Sequence[str], outputs: int) -> nn.Module:
    return NETWORKS[name](len(letters_of(languages)), outputs)


def _speller(languages: Sequence[str]) -> nn.Module:
    letters = len(letters_of(languages))
    return Recurrent(letters, letters + 1, width=128, every=True)


def _growing(base: str, model: nn.Module, **options: float) -> Growing:
    return Growing(model, base, options)


def methods(network: str, count: int = 10, only: Sequence[str] | None = None) -> dict[str, Experiment]:
    """Untuned methods that learn to distinguish the first ``count`` of `LANGUAGES`.

    Args:
        network: a name in `NETWORKS`. count: a multiple of five. only: the methods, in this order; None returns all.
    """
    languages = LANGUAGES[:count]

    def outputs(number: int) -> dict:
        name = f"{network}, {count} languages, {number} outputs"
        return {"model": named(name, NETWORK_VERSIONS[network], partial(_network, network, languages, number))}

    plain = Experiment(
        stream=named(f"{count} languages", VERSION, Source(partial(telling, languages))),
        **{"tasks": count // FIVE, "batch_size": 32, **outputs(count)},
    )
    found = {
        "Adam": replace(plain, optimizer="adam"),
        "EWC": replace(plain, optimizer="ewc", options={"samples": 300}),
        "Adam + replay": replace(plain, optimizer="adam", replay_capacity=BUFFER),
        "Consolidation": replace(plain, optimizer="consolidating"),
        "Coincidence": replace(plain, optimizer="coincidence"),
        "Joint training": replace(plain, optimizer="joint"),
    }
    for base in ("adam", "coincidence"):
        # The key of a custom method does not include the version of the rule it builds on.
        version = 100 * VERSION + METHOD_VERSIONS.get(base, 1)
        own = named(f"{TITLES[base]}, growing head", version, partial(_growing, base))
        found[own.title] = replace(plain, optimizer=own, **outputs(FIVE))
    return {method: found[method] for method in (found if only is None else only)}


def spellers() -> dict[str, Experiment]:
    """Untuned methods that learn to predict the next letter in one language after another.

    EWC is not among them: as implemented here, its Fisher information is for one label per example.
    """
    plain = Experiment(
        stream=named("next letter", VERSION, Source(partial(spelling, SPELLED))),
        model=named("GRU, next letter", VERSION, partial(_speller, SPELLED)),
        **{"tasks": len(SPELLED), "scenario": "domain", "epochs": 2, "batch_size": 32},
    )
    return {
        "Adam": replace(plain, optimizer="adam"),
        "Adam + replay": replace(plain, optimizer="adam", replay_capacity=BUFFER // 5),
        "Consolidation": replace(plain, optimizer="consolidating"),
        "Coincidence": replace(plain, optimizer="coincidence"),
    }


def with_perplexity(experiment: Experiment) -> Result:
    """A run that also measures ``perplexity_I_J``, on the texts of language J after I languages were learnt."""
    found = {}

    def look(moment: Moment) -> None:
        if moment.last:
            for number, task in enumerate(moment.stream.tasks[: moment.task], 1):
                found[f"perplexity_{moment.task}_{number}"] = perplexity(moment.learner, *task.test())

    result = run(experiment, look=look)
    return replace(result, experiment=experiment.bare(), measures=found)


@torch.no_grad()
def perplexity(learner: GradientLearner, x: Tensor, y: Tensor) -> float:
    """``exp`` of the mean cross-entropy of the next letter, for texts ``x`` and their next letters ``y``, (n, T)."""
    return round(math.exp(float(F.cross_entropy(learner.logits(x).flatten(0, 1), y.flatten()))), 4)


def tuning(network: str) -> Tuning:
    """Tuning of the methods on ten languages; runs on thirty use the same options."""
    found = methods(network, only=FEWER if network == "Transformer" else None)
    return Tuning(found, {method: points for method, points in GRIDS.items() if method in found}, TUNING_SEEDS)


def spelling_tuning() -> Tuning:
    """Tuning of the `spellers`."""
    found = spellers()
    return Tuning(found, {method: points for method, points in GRIDS.items() if method in found}, TUNING_SEEDS)


def _runs(untuned: dict[str, Experiment], seeds: Sequence[int], tuned: dict[str, Experiment]) -> Named:
    """Methods with tuned options and every seed; joint training and the growing head use Adam's rate."""
    options = {method: dict(tuned[method].options) for method in untuned}
    options |= {method: options["Adam"] for method in ("Joint training", "Adam, growing head") if method in untuned}
    return with_seeds({method: replace(own, options=options[method]) for method, own in untuned.items()}, seeds)


def part(name: str, seeds: int = 3) -> Part:
    """A part of notebook 16, by its name in `PARTS`, with this many seeds."""
    if name == "next letter":
        return Part(partial(_runs, spellers(), range(seeds)), spelling_tuning(), with_perplexity)
    network, _, count = name.partition(", ")
    only = {"GRU, 10": None, "GRU, 30": SOME, "Transformer, 10": FEWER}[name]
    return Part(partial(_runs, methods(network, int(count), only), range(seeds)), tuning(network))


PARTS = ("GRU, 10", "GRU, 30", "Transformer, 10", "next letter")
# To save time, not all the methods that are run with ten languages and a GRU.
SOME = ("Adam", "EWC", "Adam + replay", "Consolidation", "Coincidence")
FEWER = ("Adam", "Adam + replay", "Coincidence")


def perplexities(rows: pd.DataFrame) -> pd.DataFrame:
    """From the `Part.table` of the `spellers`: one row per run and number of languages ``learnt``.

    ``all`` is the geometric mean over the languages so far, and ``last`` the perplexity of the one just learnt.
    """
    found = []
    for row in rows.to_dict("records"):
        for learnt in range(1, row["tasks"] + 1):
            values = [row[f"perplexity_{learnt}_{number}"] for number in range(1, learnt + 1)]
            mean = float(np.exp(np.log(values).mean()))
            found.append(
                {"method": row["method"], "seed": row["seed"], "learnt": learnt, "all": mean, "last": values[-1]}
            )
    return pd.DataFrame(found)
