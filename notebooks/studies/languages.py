"""Languages one after another, from lists of words (notebook 16).

``python notebooks/studies languages`` runs what the notebook shows. The words come from ``wordfreq`` 3.1 (Speer 2022),
which is in the extra ``text``; whoever only reads kept runs needs it not.
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
from sp.lab.networks import AttentionBlock
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
WORDS = 4000  # of each language, the most frequent ones
LENGTH = 24  # letters of a piece
PIECES = {10: (2000, 200), 30: (800, 200)}  # of each of so many languages, to train and to test on
SPELT, SPELT_PIECES = 32, (1000, 100)  # the same for the letter that comes next
SPELLED = LANGUAGES[:FIVE]
MISSING = (
    "lists of words come from wordfreq, which is not installed: pip install 'selective-plasticity[text]', or from a "
    "checkout  pip install -e '.[text]'"
)

Pieces = tuple[np.ndarray, np.ndarray]


def pieces(words: Sequence[str], length: int, counts: tuple[int, int], seed: int) -> tuple[list[str], list[str]]:
    """Pieces of text to train and to test on, each of words in random order; no word is in both.

    Args:
        words: of one language, the most frequent first. length: letters of a piece, spaces included.
        counts: how many to train and to test on. seed: of the order.
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
    """Pieces of text as numbers of letters, (n, length); 0 is for a letter that is not in ``letters``."""
    number = {letter: place for place, letter in enumerate(letters, 1)}
    return np.array([[number.get(letter, 0) for letter in text] for text in texts])


@cache
def words_of(language: str) -> tuple[str, ...]:
    """The most frequent words of letters alone, two or more, in the order of their frequency.

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
    """All letters of the words of languages, in a fixed order."""
    return "".join(sorted({" ", *(letter for language in languages for word in words_of(language) for letter in word)}))


def telling(languages: Sequence[str], evaluation: Evaluation) -> Tasks:
    """Which language a piece of text is of; new languages come in fives, and classes are numbered over all of them."""
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
    """Which letter comes next in a text; one language after another."""
    letters, tasks = letters_of(languages), []
    for number, language in enumerate(languages):
        texts = [coded(part, letters) for part in pieces(words_of(language), SPELT + 1, SPELT_PIECES, number)]
        tasks.append([half for text in texts for half in (text[:, :-1], text[:, 1:])])
    stream = Stream.from_arrays(tasks, scenario="domain", outputs=len(letters) + 1)
    return stream.arrays.tasks_for(evaluation)


class Recurrent(nn.Module):
    """Letters (B, T), an embedding, a GRU, and a readout of the mean of its states, or of every state."""

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
    """Letters (B, T), an embedding with places, a block of attention, and a readout of the mean."""

    def __init__(self, letters: int, outputs: int, length: int = LENGTH, width: int = 64):
        super().__init__()
        self.embed = nn.Embedding(letters + 1, width)
        self.place = nn.Parameter(torch.randn(length, width) * 0.1)
        self.block = AttentionBlock(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x) + self.place).mean(1))


class Growing(GradientLearner):
    """A head that grows by five outputs when a language comes that it has none for; nobody tells it when."""

    def learn(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        needed = FIVE * (int(y.max()) // FIVE + 1)
        if needed > self.model.head.out_features:
            sp.grow_outputs(self.model.head, needed, self.optimizer)
        super().learn(x, y, allowed)


# The networks by name; how many letters there are follows from the languages, so that nothing is loaded to name one.
NETWORKS = {"GRU": Recurrent, "Transformer": Transformer}
VERSION = 1  # of streams and networks: raised when what they give changes
BUFFER = 500  # pieces, or 100 texts

# Points to tune on, as many for each.
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
    """Methods that learn to tell the first ``count`` of `LANGUAGES` apart, untuned.

    Args:
        network: a name in `NETWORKS`. count: a multiple of five. only: which methods, in this order; None: all.
    """
    languages = LANGUAGES[:count]

    def outputs(number: int) -> dict:
        name = f"{network}, {count} languages, {number} outputs"
        return {"model": named(name, VERSION, partial(_network, network, languages, number))}

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
        # Somebody's own method has no version of the rule under it in its key.
        version = 100 * VERSION + METHOD_VERSIONS.get(base, 1)
        own = named(f"{TITLES[base]}, growing head", version, partial(_growing, base))
        found[own.title] = replace(plain, optimizer=own, **outputs(FIVE))
    return {method: found[method] for method in (found if only is None else only)}


def spellers() -> dict[str, Experiment]:
    """Methods that learn the next letter in one language after another, untuned.

    EWC is not among them: its Fisher information, as it is written here, is of one label an example.
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
    """A run with measures ``perplexity_I_J``, on the texts of language J when I languages are learnt."""
    found = {}

    def look(moment: Moment) -> None:
        if moment.last:
            for number, task in enumerate(moment.stream.tasks[: moment.task], 1):
                found[f"perplexity_{moment.task}_{number}"] = perplexity(moment.learner, *task.test())

    result = run(experiment, look=look)
    return replace(result, experiment=experiment.bare(), measures=found)


@torch.no_grad()
def perplexity(learner: GradientLearner, x: Tensor, y: Tensor) -> float:
    """``exp`` of the mean cross-entropy of the next letter; texts x and what follows y, (n, T)."""
    return round(math.exp(float(F.cross_entropy(learner.logits(x).flatten(0, 1), y.flatten()))), 4)


def tuning(network: str) -> Tuning:
    """Of the methods on ten languages; thirty take what ten were tuned to."""
    found = methods(network, only=FEWER if network == "Transformer" else None)
    return Tuning(found, {method: points for method, points in GRIDS.items() if method in found}, TUNING_SEEDS)


def spelling_tuning() -> Tuning:
    """Of the methods that spell."""
    found = spellers()
    return Tuning(found, {method: points for method, points in GRIDS.items() if method in found}, TUNING_SEEDS)


def _runs(untuned: dict[str, Experiment], seeds: Sequence[int], tuned: dict[str, Experiment]) -> Named:
    """Methods with tuned options and every seed; joint training and the growing head take Adam's rate."""
    options = {method: dict(tuned[method].options) for method in untuned}
    options |= {method: options["Adam"] for method in ("Joint training", "Adam, growing head") if method in untuned}
    return with_seeds({method: replace(own, options=options[method]) for method, own in untuned.items()}, seeds)


def part(name: str, seeds: int = 3) -> Part:
    """What notebook 16 shows, by a name in `PARTS`, with so many seeds."""
    if name == "next letter":
        return Part(partial(_runs, spellers(), range(seeds)), spelling_tuning(), with_perplexity)
    network, _, count = name.partition(", ")
    only = {"GRU, 10": None, "GRU, 30": SOME, "Transformer, 10": FEWER}[name]
    return Part(partial(_runs, methods(network, int(count), only), range(seeds)), tuning(network))


PARTS = ("GRU, 10", "GRU, 30", "Transformer, 10", "next letter")
# For time not everything that ten languages and a GRU show.
SOME = ("Adam", "EWC", "Adam + replay", "Consolidation", "Coincidence")
FEWER = ("Adam", "Adam + replay", "Coincidence")


def perplexities(rows: pd.DataFrame) -> pd.DataFrame:
    """Of `Part.table` of the methods that spell, a row for each run and number of languages learnt.

    ``all`` is the geometric mean over the languages so far, ``last`` that of the one just learnt; ``learnt`` counts.
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
