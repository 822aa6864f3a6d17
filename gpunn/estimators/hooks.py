"""scikit-learn's callbacks, which came with 1.9; before it, a stand-in that calls nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks

    #: How many of scikit-learn's decorators stand between a caller and `fit`, for warnings.
    DECORATORS = 2
except ImportError:
    DECORATORS = 1

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Adds nothing: this scikit-learn has no callbacks."""

    def with_callbacks(method: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method as it is."""
        return method


__all__ = ["DECORATORS", "CallbackSupportMixin", "Hooks", "with_callbacks"]


class Hooks:
    """Tells the callbacks of an estimator, if it has any, of the tasks that its fit consists of.

    Parameters
    ----------
    estimator : estimator
        Within a method under `with_callbacks`.
    n_epochs : int
        At most so many.
    data : dict
        What callbacks may look at: `X`, `y` and `metadata`.
    fitted : function
        Returns the attributes of an estimator as if training had ended now.
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
        """Tell that an epoch begins."""
        if self._context is not None:
            self._epoch = self._context.subcontext(task_name="epoch")
            self._epoch.call_on_fit_task_begin(**self._about)

    def epoch_ends(self) -> bool:
        """Tell that it ends; return whether a callback wants training to end."""
        return self._epoch is not None and bool(self._epoch.call_on_fit_task_end(**self._about))

    def fit_ends(self) -> None:
        """Tell that training has ended."""
        if self._context is not None:
            self._context.call_on_fit_task_end(**self._about)
