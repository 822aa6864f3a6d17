"""Whatever is given to a constructor, function or method, it works or says what is wrong.

It never raises another error, warns, hangs, or takes more memory than the machine has.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpunn as gn
from gpunn.arrays.checks import is_whole
from gpunn.errors import GpunnError
from tests.bounds import bounded, check_words
from tests.odd_settings import ODD, layer, loader
from tests.test_settings import NEEDED, VARIABLE, public

X, Y = np.linspace(-1.0, 1.0, 8, dtype="float32").reshape(2, 4), np.array([0, 1])


def trainer() -> gn.Trainer:
    model = layer()
    return gn.Trainer(model, gn.SoftmaxCrossEntropy(), gn.SGD(model.parameters()), rng=0)


def train_step(**settings: Any) -> Any:
    model = layer()
    mine = {"model": model, "optimizer": gn.SGD(model.parameters())}
    return gn.train_step(**mine | settings)


#: What the calls need besides the arguments under test, by name; made anew for each call.
MAKE: dict[str, Callable[[], Any]] = {
    "y": lambda: Y,
    "input_shape": lambda: 4,
    "history": gn.History,
    "backend": lambda: "numpy",
    "rng": lambda: 0,
    "loader": loader,
    "data": loader,
    "epochs": lambda: 1,
    "batch_size": lambda: 2,
    "record": lambda: {"loss": 0.5},
    "state": dict,
    "model": layer,
    "parameters": lambda: layer().parameters(),
    "optimizer": lambda: gn.SGD(layer().parameters()),
    "shape": lambda: (2, 2),
}

#: Methods, each of a new object.
METHODS: dict[str, Callable[[], Any]] = {
    "Trainer.fit": lambda: trainer().fit,
    "Trainer.evaluate": lambda: trainer().evaluate,
    "Trainer.predict": lambda: trainer().predict,
    "Trainer.predict_proba": lambda: trainer().predict_proba,
    "Trainer.check": lambda: trainer().check,
    "Trainer.load_state_dict": lambda: trainer().load_state_dict,
    "Layer.to": lambda: layer().to,
    "Layer.output_shape": lambda: layer().output_shape,
    "Layer.summary": lambda: layer().summary,
    "Layer.memory": lambda: layer().memory,
    "Layer.load_state_dict": lambda: layer().load_state_dict,
    "Optimizer.load_state_dict": lambda: gn.SGD(layer().parameters()).load_state_dict,
    "Loader.load_state_dict": lambda: loader().load_state_dict,
    "History.append": lambda: gn.History().append,
    "History.load_state_dict": lambda: gn.History().load_state_dict,
}


def items() -> dict[str, Callable[[], Any]]:
    """Return what makes each public callable, by name."""
    made = [(name, item) for name, item in public() if not getattr(item, "_is_protocol", False)]
    found = {name: lambda item=item: item for name, item in made}
    return found | {"train_step": lambda: train_step} | METHODS


ITEMS = items()


def parameters(name: str) -> dict[str, inspect.Parameter]:
    called = gn.train_step if name == "train_step" else ITEMS[name]()
    return dict(inspect.signature(called).parameters)


def is_left_out(name: str, setting: str, value: Any) -> bool:
    """Return whether a value is right, and takes as long as it says."""
    return (name, setting) == ("Trainer.fit", "epochs") and is_whole(value) and value > 10**6


BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY,)

SETTINGS = {
    name: [each.name for each in parameters(name).values() if each.kind is not each.VAR_KEYWORD]
    for name in ITEMS
}


def called(name: str, odd: dict[str, Any]) -> Any:
    """Call an item with odd arguments, and with what it needs besides."""
    asked = parameters(name)
    needed = [each for each in asked.values() if each.default is each.empty]
    given = {
        each.name: MAKE.get(each.name, lambda each=each: NEEDED[each.name])()
        for each in needed
        if each.kind not in VARIABLE and each.name not in odd
    } | odd
    several = [each.name for each in asked.values() if each.kind is each.VAR_POSITIONAL]
    by_place = [given.pop(n) for n in asked if n in given and asked[n].kind in BY_PLACE]
    return ITEMS[name]()(*by_place, *[given.pop(n) for n in several if n in given], **given)


def attempt(name: str, odd: dict[str, Any]) -> None:
    """Make a call, and use what it returns."""
    with bounded():
        try:
            used(called(name, odd))
        except (GpunnError, TypeError, ValueError) as error:
            refused = error
        else:
            return
    speakers = [*re.split("[._]", name), name, *SPEAKERS]
    check_words(refused, [*odd, *speakers], odd.values())


def used(result: Any) -> None:
    """Do with a result what it is for."""
    assert repr(result)
    if isinstance(result, gn.Optimizer) and type(result) is not gn.Optimizer:
        for parameter in result.parameters:
            parameter.add_grad(np.ones_like(parameter.value))
        with np.errstate(all="ignore"):  # of settings far from 1
            result.step()
    elif isinstance(result, (gn.Layer, gn.Loss)):
        with np.errstate(all="ignore"), suppress(GpunnError):  # X need not fit
            _ = result(X) if isinstance(result, gn.Layer) else result(X, Y)
    elif type(result).__module__ == gn.schedules.__name__:
        assert result(0) >= 0
        assert result(10**6) >= 0


#: Who may speak: the classes that others are made of.
SPEAKERS = [name for name in gn.__all__ if inspect.isclass(getattr(gn, name))]


@pytest.fixture(autouse=True)
def aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Write files elsewhere, and put back what calls set for the process."""
    monkeypatch.chdir(tmp_path)
    gn.save("weights.safetensors", layer())
    from matplotlib import pyplot as plt  # noqa: PLC0415

    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.mark.parametrize(
    ("name", "setting"), [(name, setting) for name in ITEMS for setting in SETTINGS[name]]
)
def test_one_odd_argument(name: str, setting: str) -> None:
    failures = []
    for kind, make in ODD.items():
        value = make()
        if is_left_out(name, setting, value):
            continue
        try:
            attempt(name, {setting: value})
        except Exception as error:  # noqa: BLE001 (all of them are told)
            failures.append(f"{kind}: {type(error).__name__}: {error!s:.300}")
    assert not failures


#: Numbers and texts of any kind; sizes are small, or larger than any memory.
VALUES = st.one_of(
    st.sampled_from(sorted(ODD)).map(lambda kind: ODD[kind]()),
    st.integers(-9, 33),
    st.integers(10**13),
    st.floats(),
    st.text(max_size=9),
    st.lists(st.integers(-1, 4), max_size=4),
    st.dictionaries(st.integers(-1, 4), st.floats(), max_size=3),
)


@pytest.mark.parametrize("name", [name for name in ITEMS if SETTINGS[name]])
@given(data=st.data())
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_several_odd_arguments(name: str, data: Any) -> None:
    several = st.lists(st.sampled_from(SETTINGS[name]), min_size=1, unique=True)
    odd = data.draw(several, "settings")
    values = {setting: data.draw(VALUES, setting) for setting in odd}
    if not any(is_left_out(name, setting, value) for setting, value in values.items()):
        attempt(name, values)
