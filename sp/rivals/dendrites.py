"""Bridge to `perforatedai`, which grows artificial dendrites on the layers of a network while it learns.

The package wraps each layer. When a validation score stalls, it goes back to the best weights and gives every wrapped
layer one more dendrite: a copy of the layer with small random weights. The dendrite's sigmoid is added to the layer's
output with a separate weight for each unit, initially zero. This module silences the package, gives it a folder to
write to, and rebuilds the optimizer when the network has changed, keeping the state of existing synapses.

Install it as an extra: ``pip install 'selective-plasticity[dendrites]'``.
"""

import contextlib
import importlib
import io
import os
import re
import sys
import tempfile
import warnings
from bdb import BdbQuit
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from sp.biology import NMDACoincidence
from sp.checks import check_integer
from sp.optim import ConsolidatingPlasticityOptimizer

_NEWEST = re.compile(r"(.*)\.dendrites_to_top\.(\d+)$")


def installed() -> bool:
    """Whether the package is installed."""
    try:
        _package()
    except ImportError:
        return False
    return True


def _package() -> tuple[ModuleType, ModuleType]:
    """The package's settings and functions, imported on first use.

    Raises:
        ImportError: the package is missing; the message names the extra.
    """
    import matplotlib

    first = "perforatedai.globals_perforatedai" not in sys.modules
    backend = matplotlib.get_backend() if first else None
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            settings = importlib.import_module("perforatedai.globals_perforatedai")
            functions = importlib.import_module("perforatedai.utils_perforatedai")
    except ImportError as error:
        raise ImportError(
            "growing dendrites needs the package perforatedai: pip install 'selective-plasticity[dendrites]', or "
            f"make dendrites  in the project's folder ({error})"
        ) from error
    if first:
        matplotlib.use(backend)  # the package switches to one that shows nothing in a notebook
    return settings, functions


class Dendrites:
    """A network that grows dendrites, with the training cycle of the package.

    The package keeps one tracker and one set of settings for the whole process. They are swapped here before each
    call, so that several networks can grow side by side, but not in concurrent threads.

    Args:
        model: a network that contains Linear, Conv1d, Conv2d or Conv3d layers; changed in place.
        folder: where the package writes weights, settings and its printed output (``package.log``). None: a temporary
            folder, which is deleted with this object.
        patience: number of scores without a new best before dendrites are added, >= 1.
        most: maximum number of dendrites per unit, >= 1.
        tries: how often new dendrites that did not improve the score are redrawn before the package gives up, >= 1.

    Attributes:
        model: the network as it is now.
        finished: whether the package has finished growing; it accepts no more scores until `new_scores` is called.

    Raises:
        ImportError: the package is missing. ValueError, TypeError: a number is out of range.
        RuntimeError: the package stopped, here or later; the message has the end of its log.
    """

    def __init__(
        self,
        model: nn.Module,
        folder: str | os.PathLike | None = None,
        *,
        patience: int = 3,
        most: int = 1,
        tries: int = 2,
    ):
        for name, value in (("patience", patience), ("most", most), ("tries", tries)):
            check_integer(name, value, 1)
        self._settings, self._functions = _package()
        self._temporary = tempfile.TemporaryDirectory() if folder is None else None
        self.folder = Path(self._temporary.name if folder is None else folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.finished = False
        chosen = {
            "configuration_confirmed": True,  # otherwise it asks at the terminal
            "unwrapped_modules_confirmed": True,
            "testing_dendrite_capacity": False,  # otherwise it adds three dendrites at once, whatever the score
            "silent": True,
            "test_saves": False,
            "find_best_lr": False,
            "n_epochs_to_switch": patience,
            "max_dendrites": most,
            "max_dendrite_tries": tries,
            "device": next(model.parameters()).device,
        }
        self._config, self._tracker = self._settings.PAIConfig(), []
        with self._quietly():
            for name, value in chosen.items():
                getattr(self._config, f"set_{name}")(value)
            self.model = self._functions.perforate_model(model, save_name="growth", maximizing_score=True)
            self._settings.pai_tracker.making_graphs = False

    @contextlib.contextmanager
    def _quietly(self) -> Iterator[None]:
        """Run the package for this network, in its folder, with its output in the log."""
        package, terminal = self._settings, sys.stdin
        log = self.folder / "package.log"
        package.pc, package.pai_tracker = self._config, self._tracker
        sys.stdin = io.StringIO()  # if something is wrong it opens a debugger, which ends here instead of waiting
        try:
            with (
                log.open("a") as file,
                contextlib.chdir(self.folder),
                contextlib.redirect_stdout(file),
                contextlib.redirect_stderr(file),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore", DeprecationWarning)  # raised by its own use of numpy
                yield
        except (BdbQuit, SystemExit) as end:
            raise RuntimeError(f"perforatedai stopped. Its log, {log}, ends with: {log.read_text()[-600:]}") from end
        finally:
            self._tracker = package.pai_tracker
            sys.stdin = terminal

    def validated(self, score: float, optimizer: Optimizer, make: Callable[[nn.Module], Optimizer]) -> Optimizer:
        """Pass a validation score to the package, which may change the network.

        Args:
            score: accuracy, or another score where higher is better, on examples that are not learnt.
            optimizer: the network's current optimizer.
            make: makes an optimizer for the changed network, with the same class and number of parameter groups, whose
                options are carried over; for coincidence capture, use `coincidence_optimizer`.

        Returns:
            The optimizer to continue with: the same one or, if the network changed, a new one, in which existing
            synapses keep their state and new ones have none.
        """
        if self.finished:
            raise RuntimeError("the package has finished growing: call new_scores() when another task begins")
        before = dict(self.model.named_parameters())
        with self._quietly():
            tracker = self._settings.pai_tracker
            tracker.set_optimizer_instance(optimizer)
            self.model, changed, self.finished = tracker.add_validation_score(float(score), self.model)
        if not changed and not self.finished:
            return optimizer
        new = make(self.model)
        carry_over(optimizer, before, new, dict(self.model.named_parameters()), grown=not self.finished)
        return new

    def new_scores(self) -> None:
        """Start a new task, whose scores are not compared with those of the last."""
        found = self._tracker.member_vars
        found.update(
            current_best_validation_score=0,
            global_best_validation_score=0,
            running_accuracy=0,
            current_n_set_global_best=False,
            epoch_last_improved=found["num_epochs_run"],
        )
        self.finished = False

    @property
    def count(self) -> int:
        """Number of dendrites per unit."""
        return max((m.dendrite_modules_added for m in self._wrapped()), default=0)

    def _wrapped(self) -> list[nn.Module]:
        return [module for module in self.model.modules() if hasattr(type(module), "clear_dendrites")]


def acting(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that take part in the forward pass and learn.

    In each wrapped layer, the package also keeps a template for new dendrites, and the former weights from earlier
    dendrites to their unit; both are in ``model.parameters()``.
    """
    return [p for name, p in model.named_parameters() if p.requires_grad and "parent_module" not in name]


def coincidence_optimizer(model: nn.Module, **options: Any) -> ConsolidatingPlasticityOptimizer:
    """The coincidence form of consolidation for a network that grows dendrites; ``options`` as for any network.

    The weights from dendrites to their units are not watched, so the rule treats their input as constant. Counting it
    from the very first step would fix them at zero, their initial value. They therefore form a separate group, for
    which `carry_over` records the step in which the last of them was ``born``.
    """
    late = [p for name, p in model.named_parameters() if "dendrites_to_top" in name]
    others = [p for name, p in model.named_parameters() if "dendrites_to_top" not in name]
    groups = [{"params": others}, {"params": late}]
    return ConsolidatingPlasticityOptimizer(groups, coincidence=NMDACoincidence(model), **options)


def carry_over(
    old: Optimizer,
    before: dict[str, nn.Parameter],
    new: Optimizer,
    after: dict[str, nn.Parameter],
    grown: bool = True,
) -> None:
    """Give a new optimizer the state of an old one for the same synapses, and its step counts.

    Args:
        old, before: the previous optimizer, and its network's parameters by name.
        new, after: the same for the changed network.
        grown: whether each wrapped layer's last dendrite is new; a parameter of the same name in ``before`` then
            belonged to one that was discarded.
    """
    was, now = _newest(before), _newest(after)
    for name, parameter in after.items():
        layer = next((layer for layer in now if name.startswith(f"{layer}.")), None)
        place = now.get(layer)
        if name == f"{layer}.dendrites_to_top.{place}":
            # The package replaces the weights from dendrites to their unit with a tensor that has one more row.
            source = before.get(f"{layer}.dendrites_to_top.{was.get(layer)}")
            rows = place + (not grown)
        else:
            drawn_anew = grown and re.search(rf"\.(layers|dendrites_to_dendrites)\.{place}(\.|$)", name)
            source = None if drawn_anew else before.get(name)
            rows = len(parameter) if parameter.dim() else 0
        state = {} if source is None else old.state.get(source, {})
        if state and (rows or not parameter.dim()):
            new.state[parameter] = {key: _rows(value, source, parameter, rows) for key, value in state.items()}
    for old_group, new_group in zip(old.param_groups, new.param_groups, strict=False):
        new_group.update({key: value for key, value in old_group.items() if key != "params"})
    if grown and isinstance(new, ConsolidatingPlasticityOptimizer) and len(new.param_groups) == 2:
        new.param_groups[1]["born"] = float(new.param_groups[0]["shared"]["age"])
    if getattr(old, "coincidence", None) is not None and old.coincidence is not new.coincidence:
        old.coincidence.remove()


def _newest(parameters: dict[str, nn.Parameter]) -> dict[str, int]:
    """Number of each wrapped layer's last dendrite, by layer name."""
    found: dict[str, int] = {}
    for name in parameters:
        if match := _NEWEST.match(name):
            found[match[1]] = max(found.get(match[1], 0), int(match[2]))
    return found


def _rows(value: Any, source: Tensor, parameter: Tensor, rows: int) -> Any:
    """The first rows of the state of ``source``, zeros elsewhere; state of another shape is returned unchanged."""
    whole = parameter.dim() == 0 or (rows == len(parameter) and parameter.shape == source.shape)
    if whole or not isinstance(value, Tensor) or value.shape != source.shape:
        return value
    kept = value.new_zeros(parameter.shape)
    kept[:rows] = value[:rows]
    return kept
