"""scikit-learn's callbacks, new in 1.9; with older versions, stand-ins that do nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks

    #: The number of scikit-learn's decorators around `fit`, for the stacklevel of warnings.
    DECORATORS = 2
except ImportError:
    DECORATORS = 1

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Does nothing: this version of scikit-learn has no callbacks."""

    def with_callbacks(method: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method unchanged."""
        return method


__all__ = ["DECORATORS", "CallbackSupportMixin", "Hooks", "with_callbacks"]


class Hooks:
    """Notifies an estimator's callbacks of the stages of its training.

    Parameters
    ----------
    estimator : estimator
        The estimator, inside a method decorated by `with_callbacks`.
    n_epochs : int
        The maximum number of epochs.
    data : dict
        The data for callbacks: `X`, `y` and `metadata`.
    fitted : function
        Returns the attributes that the estimator would have if training ended now.
    """

    def __init__(
        self,
        estimator: Any,
        n_epochs: int,
        data: dict[str, Any],
        fitted: Callable[[], dict[str, Any]],
    ) -> None:
        self.n_epochs = n_epochs
        self._context: Any = None
        self._epoch: Any = None
        self._about = {"estimator": estimator, **data, "reconstruction_attributes": fitted}
        if hasattr(estimator, "_init_callback_context"):
            self._context = estimator._init_callback_context(max_subtasks=n_epochs)
            self._context.call_on_fit_task_begin(estimator=estimator)

    def epoch_begins(self) -> None:
        """Notify of the beginning of an epoch."""
        if self._context is not None:
            self._epoch = self._context.subcontext(task_name="epoch")
            self._epoch.call_on_fit_task_begin(**self._about)

    def epoch_ends(self) -> bool:
        """Notify of the end of an epoch; return whether a callback asks to stop."""
        return self._epoch is not None and bool(self._epoch.call_on_fit_task_end(**self._about))

    def fit_ends(self) -> None:
        """Notify of the end of training."""
        if self._context is not None:
            self._context.call_on_fit_task_end(**self._about)
