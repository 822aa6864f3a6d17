"""What a loader remembers between epochs, as numbers and arrays by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gpunn.arrays.state import (
    check_kind,
    check_names,
    generator_state,
    plain_attributes,
    restore_generator,
    set_plain_attributes,
)
from gpunn.errors import StateError

#: The settings that may change while a loader is used.
_SETTINGS = ("batch_size", "block_size", "window", "drop_last")


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
        return {
            "samples": self.n_samples,
            "settings": {name: getattr(self, name) for name in _SETTINGS},
            "shuffle": "function" if callable(self.shuffle) else self.shuffle,
            "rng": generator_state(self._rng),
            "transform": _transform_state(self.transform),
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
        if (state["shuffle"] == "function") != callable(self.shuffle):
            raise StateError(
                f"Loader.load_state_dict: shuffle is {state['shuffle']!r} in the state and "
                f"{self.shuffle!r} here; make the loader as it was made for the state"
            )
        load_transform_state(self.transform, state["transform"])
        restore_generator("Loader", self._rng, state["rng"])
        for name, value in state["settings"].items():
            setattr(self, name, value)
        if not callable(self.shuffle):
            self.shuffle = state["shuffle"]


def _transform_state(transform: Any) -> dict[str, Any] | None:
    """Return what a transform has to remember; of a function, nothing but that it is one."""
    if transform is None:
        return None
    own = getattr(transform, "state_dict", None)
    if own is not None:
        return dict(own())
    kept = plain_attributes(transform) if hasattr(transform, "__dict__") else {}
    return {"kind": type(transform).__name__, **kept}


def load_transform_state(transform: Any, state: Any) -> None:
    """Let a transform go on from a state."""
    if (transform is None) != (state is None):
        raise StateError(
            f"Loader.load_state_dict: {'there was' if transform is None else 'there was no'} "
            "transform when the state was taken; make the loader as it was made for the state"
        )
    if transform is None:
        return
    own = getattr(transform, "load_state_dict", None)
    if own is not None:
        own(state)
        return
    check_kind("Loader.transform", transform, state)
    set_plain_attributes(transform, {k: v for k, v in state.items() if k != "kind"})
