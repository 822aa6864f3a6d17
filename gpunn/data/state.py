"""What a loader remembers between epochs, as numbers and arrays by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gpunn.arrays.state import (
    all_or_nothing,
    attributes_of,
    check_kind,
    check_names,
    generator_state,
    generators,
    restore_generator,
    set_attributes,
)
from gpunn.errors import StateError

#: The settings that may change while a loader is used, and the attributes that hold them: the
#: number of processes may be another one when a loader goes on, and steps stay as they were.
_SETTINGS = ("batch_size", "block_size", "window", "drop_last")
_ATTRIBUTES = {"batch_size": "step_size"}


class Stateful:
    """The part of a loader that tells its state, and goes on from one."""

    n_samples: int
    shuffle: Any
    transform: Callable[..., Any] | None
    _rng: np.random.Generator

    def state_dict(self) -> dict[str, Any]:
        """Return the settings, the generator of the order, and the state of the transform.

        Neither the data nor functions are part of it: a loader that goes on from the state is made
        with the same ones.

        Raises
        ------
        StateError
            If the transform has an attribute that is no number, and does not say how to tell it
            (``state_dict`` and ``load_state_dict``).
        """
        for name, value in vars(self).items():
            if isinstance(value, generators()) and value is not self._rng:
                kind = type(self).__name__
                raise StateError(
                    f"{kind}.state_dict: {name!r} is a generator of its own; define state_dict and "
                    f"load_state_dict in {kind}, so that they remember it, too"
                )
        return {
            "samples": self.n_samples,
            "settings": {name: getattr(self, _ATTRIBUTES.get(name, name)) for name in _SETTINGS},
            "shuffle": _told(self.shuffle),
            "rng": generator_state(self._rng),
            "transform": _told(self.transform),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: the next epochs have the order that they would have had.

        Raises
        ------
        StateError
            If the state is that of a loader of another number of samples, or does not fit in
            another way. Nothing has changed then.
        """
        check_names("Loader", state, ("samples", "settings", "shuffle", "rng", "transform"))
        if state["samples"] != self.n_samples:
            raise StateError(
                f"Loader.load_state_dict: the state is that of a loader of {state['samples']} "
                f"samples, and this one has {self.n_samples}; give it the same data"
            )
        check_names("Loader", state["settings"], _SETTINGS)
        with all_or_nothing(self):
            self._load(state)

    def _load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of such a loader."""
        for name in ("shuffle", "transform"):
            _check_alike(name, state[name], getattr(self, name))
        for name in ("shuffle", "transform"):
            if callable(getattr(self, name)):
                _go_on(getattr(self, name), state[name])
        restore_generator("Loader", self._rng, state["rng"])
        for name, value in state["settings"].items():
            setattr(self, _ATTRIBUTES.get(name, name), value)
        if not callable(self.shuffle):
            self.shuffle = state["shuffle"]


def _told(value: Any) -> Any:
    """Return a setting, or what a function or an object that stands for one has to remember."""
    if not callable(value):
        return value
    own = getattr(value, "state_dict", None)
    return (
        dict(own()) if own is not None else {"kind": type(value).__name__, **attributes_of(value)}
    )


def _check_alike(name: str, state: Any, value: Any) -> None:
    """Check that a setting is a function if it was one, and None if it was."""
    was = "a function" if isinstance(state, Mapping) else repr(state)
    now = "a function" if callable(value) else repr(value)
    if was != now and "a function" in {was, now}:
        raise StateError(
            f"Loader.load_state_dict: {name} is {was} in the state and {now} here; make the loader "
            "as it was made for the state"
        )


def _go_on(function: Any, state: Any) -> None:
    """Let a function, or an object that stands for one, go on from what it remembered."""
    own = getattr(function, "load_state_dict", None)
    if own is not None:
        own(state)
        return
    check_kind("Loader", function, state)
    set_attributes(function, {k: v for k, v in state.items() if k != "kind"})
