"""Checks of a trainer's arguments, with errors that say what to write instead."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import wraps
from typing import Any, TypeVar, cast

from gpunn.arrays.checks import one_of, shown
from gpunn.data.loader import Loader
from gpunn.errors import SettingError
from gpunn.losses.base import Loss
from gpunn.losses.sequence import SequenceCrossEntropy
from gpunn.nn.layer import Layer
from gpunn.nn.parameter import Parameter
from gpunn.optim.base import Optimizer
from gpunn.training.metrics import (
    MAE,
    R2,
    BinaryAccuracy,
    Metric,
    Perplexity,
    SequenceAccuracy,
    get_metric,
)
from gpunn.training.stopping import EarlyStopping

#: Names of a history's own columns, and the other keys of `History.to_dict`.
_COLUMNS = (
    *("loss", "cost", "validation_loss", "learning_rate", "elapsed_s", "samples_per_s"),
    *("epoch", "stopped"),
)

#: Name, class, description and constructor arguments of each part of training.
_PARTS = (
    ("model", Layer, "a Layer", "..."),
    ("loss", Loss, "a Loss", ""),
    ("optimizer", Optimizer, "an Optimizer", "model.parameters()"),
)


_Method = TypeVar("_Method", bound=Callable[..., Any])


def takes_a_loader(fit: _Method) -> _Method:
    """Check that a trainer's method gets a `Loader`, not x and y as in other libraries."""

    @wraps(fit)
    def checked(trainer: Any, *arguments: Any, **settings: Any) -> Any:
        given = arguments[:1] or [x for name, x in settings.items() if name == "loader"]
        if given and not isinstance(given[0], Loader):
            raise SettingError(
                f"Trainer.{fit.__name__}: expected a Loader, got {kind_of(given[0])}; write "
                "trainer.fit(gn.Loader(x, y, batch_size=32), epochs=1)"
            )
        return fit(trainer, *arguments, **settings)

    return cast("_Method", checked)


def check_parts(owner: str, model: Any, loss: Any, optimizer: Any) -> None:
    """Check the classes of model, loss and optimizer."""
    for part, (name, kind, wanted, made_of) in zip((model, loss, optimizer), _PARTS, strict=True):
        if isinstance(part, kind):
            continue
        advice = f"; write {part.__name__}({made_of})" if isinstance(part, type) else ""
        raise SettingError(f"{owner}: {name} must be {wanted}, got {kind_of(part)}{advice}")


def kind_of(value: Any) -> str:
    """Describe an argument in an error: the type of an object, or the name of a class."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def as_metrics(metrics: Any, loss: Loss) -> list[Metric]:
    """Return metrics as objects; check that the names of their columns are unique.

    Names stand for metrics that fit the loss: "binary_accuracy" gets the loss's threshold,
    "accuracy" and "perplexity" ignore the positions that the loss ignores.
    """
    if isinstance(metrics, str):
        metrics = [metrics]
    if not isinstance(metrics, Sequence):
        raise SettingError(
            f"Trainer: metrics must be a list, such as ['accuracy'], got {shown(metrics)}"
        )
    resolved = [_for_loss(metric, loss) or get_metric(metric) for metric in metrics]
    taken = set(_COLUMNS)
    for metric in resolved:
        _check_reads(metric, loss)
        one_of(repr(metric), "higher_is_better", metric.higher_is_better, (None, True, False))
        if not isinstance(metric.name, str):
            raise SettingError(
                f"Trainer: the name of a metric must be a string, got {shown(metric.name)} of "
                f"{metric!r}"
            )
        for column in (metric.name, f"validation_{metric.name}"):
            if column in taken:
                raise SettingError(
                    f"Trainer: two columns of the history would be called {column!r}; give each "
                    "of metrics once, and your own a name that is not taken"
                )
            taken.add(column)
    return resolved


def _for_loss(metric: Any, loss: Loss) -> Metric | None:
    """Return the metric of that name that fits the loss; None if it does not depend on the loss."""
    if not isinstance(metric, str):
        return None
    if metric == "binary_accuracy":
        return BinaryAccuracy(0.0 if loss.from_logits else 0.5)
    if isinstance(loss, SequenceCrossEntropy) and metric in ("accuracy", "perplexity"):
        kind = SequenceAccuracy if metric == "accuracy" else Perplexity
        return kind(loss.ignore_label)
    return None


def _check_reads(metric: Metric, loss: Loss) -> None:
    """Check that a built-in metric reads the model's outputs as the loss does."""
    if type(metric) in (MAE, R2) and loss.outputs != "predictions":
        raise SettingError(
            f"Trainer: {metric!r} compares predictions with targets, and with {loss!r} the model's "
            f"outputs are {loss.outputs}; use a metric of your own that converts them"
        )
    if type(metric) is Perplexity and not loss.from_logits:
        raise SettingError(
            f"Trainer: {metric!r} takes logits, and {loss!r} takes probabilities; use a loss of "
            "logits, such as SoftmaxCrossEntropy(), and end the model without softmax"
        )


def as_callbacks(callbacks: Any) -> tuple[Callable[..., object], ...]:
    """Return callbacks as a tuple; check that each can be called."""
    if callable(callbacks):
        name = getattr(callbacks, "__name__", "callback")
        raise SettingError(
            "Trainer.fit: callbacks must be a list of functions, got a single one; "
            f"write callbacks=[{name}]"
        )
    try:
        given = iter(() if callbacks is None else callbacks)
    except TypeError:
        given = None
    if given is None or callbacks is None or isinstance(callbacks, (str, dict)):
        raise SettingError(
            f"Trainer.fit: callbacks must be a list of functions, got {shown(callbacks)}"
        )
    listed = []
    for i, callback in enumerate(given):  # stops at the first fault: the iterable may be endless
        if isinstance(callback, type) or not callable(callback):
            came = shown(callback)
            if isinstance(callback, type):
                came = f"{kind_of(callback)}; write {callback.__name__}()"
            raise SettingError(
                f"Trainer.fit: callbacks[{i}] must be a function of (trainer, history), got {came}"
            )
        listed.append(callback)
    return tuple(listed)


def check_early_stopping(given: Any) -> None:
    """Check that `given` is None or an `EarlyStopping`; suggest the likely correction."""
    if given is None or isinstance(given, EarlyStopping):
        return
    settings = ""
    if isinstance(given, int) and not isinstance(given, bool):
        settings = f"patience={given}"
    elif isinstance(given, str):
        settings = f"monitor={shown(given)}"
    elif isinstance(given, dict):
        settings = ", ".join(f"{name}={shown(value)}" for name, value in [*given.items()][:9])
    came = kind_of(given) if isinstance(given, type) else shown(given)
    write = "None" if given is False else f"gn.EarlyStopping({settings})"
    raise SettingError(
        f"Trainer.fit: early_stopping must be None or an EarlyStopping, got {came}; "
        f"write early_stopping={write}"
    )


def check_data(owner: str, given: Any) -> None:
    """Check that `given` is (x, y) or (x, y, sample_weight)."""
    if isinstance(given, (tuple, list)) and len(given) in (2, 3):
        return
    came = kind_of(given)
    if isinstance(given, (tuple, list)):
        came = "1 item" if len(given) == 1 else f"{len(given)} items"
    raise SettingError(f"{owner}: expected a Loader, (x, y) or (x, y, sample_weight), got {came}")


def check_unchanged(model: Layer, optimizer: Optimizer, known: frozenset[Parameter]) -> None:
    """Check that the optimizer holds all new parameters of the model, and no removed ones.

    Parameters in `known`, from when the trainer was built, may be left out on purpose. New ones
    would never be trained.
    """
    held, named = set(optimizer.parameters), model.named_parameters()
    own = set(named.values())
    faults = []
    if missed := own - held - known:
        faults.append(f"it has {_names(named, missed)}, which the optimizer does not hold")
    if lost := len(held - own):
        some = "1 parameter that is" if lost == 1 else f"{lost} parameters that are"
        faults.append(f"the optimizer holds {some} no longer the model's")
    if faults:
        raise SettingError(
            f"Trainer: the model has changed since the trainer was built: {'; '.join(faults)}. "
            f"Build the optimizer anew, {type(optimizer).__name__}(model.parameters()), "
            "and the trainer"
        )


def report_newcomers(owner: str, model: Layer, optimizer: Optimizer) -> None:
    """Warn of parameters created after the optimizer, which does not hold them.

    They may be frozen on purpose, as older ones that it does not hold are; more likely, their
    layers were added too late.
    """
    held, named = set(optimizer.parameters), model.named_parameters()
    late = {p for p in named.values() if p not in held and p.serial > optimizer.serial}
    if late:
        import logging  # noqa: PLC0415 (slow to import)

        logging.getLogger("gpunn").warning(
            "%s: %s will not be trained: made after the optimizer, which does not hold them. "
            "If that is not intended, build the optimizer again, %s(model.parameters())",
            owner,
            _names(named, late),
            type(optimizer).__name__,
        )


def _names(known: dict[str, Parameter], chosen: Collection[Parameter]) -> str:
    """Return the names of the chosen parameters, at most three of them."""
    names = [name for name, parameter in known.items() if parameter in chosen]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
