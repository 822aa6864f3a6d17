"""The loop over epochs, with scikit-learn's rules for stopping and for warnings."""

from __future__ import annotations

import math
import warnings
from typing import Any

from sklearn.exceptions import ConvergenceWarning

from gpunn._typing import Array
from gpunn.arrays.backend import scope_of
from gpunn.arrays.exchange import to_numpy
from gpunn.data.loader import Loader
from gpunn.estimators.convergence import diverged, explosion, not_converged
from gpunn.estimators.epochs import Epochs
from gpunn.estimators.fitted import FittedNetwork
from gpunn.estimators.hooks import DECORATORS, CallbackSupportMixin, Hooks
from gpunn.estimators.resuming import Saved
from gpunn.estimators.solvers import epoch_ended, is_full_batch
from gpunn.kernels import kernels
from gpunn.training.stopping import BestWeights


class TrainingLoop(CallbackSupportMixin, FittedNetwork):
    """An estimator that trains its network, once `fit` has created it."""

    def _score_of(self, outputs: Array, target: Any, weight: Any) -> float:
        """Return the score of outputs, for early stopping."""
        raise NotImplementedError

    def _train(
        self,
        epochs: Epochs,
        held_out: Loader | None,
        hooks: Hooks,
        saved: Saved,
        *,
        incremental: bool,
    ) -> None:
        """Run epochs until training stops improving, or `max_iter` is reached."""
        progress = self._progress
        best = BestWeights(self._network) if progress.early_stopping else None
        if best is not None and progress.best_score is not None:
            best.loss = -progress.best_score
        stopped = saved.begin(epochs, held_out, progress, best)
        try:
            with saved.listening():
                while not stopped and progress.n_iter < hooks.n_epochs:
                    hooks.epoch_begins()
                    record = epochs.run()
                    if not math.isfinite(record["loss"]):
                        self._give_up(best, record, epochs)
                        stopped = True
                        break
                    score = self._record(record, epochs, held_out, incremental=incremental)
                    if best is not None and score is not None:
                        best.offer(progress.n_iter, -score)
                    # partial_fit is not an epoch of fit: it neither lowers the rate nor stops.
                    stopped = not incremental and epoch_ended(self, progress, self._optimizer)
                    stopped = hooks.epoch_ends() or stopped
                    saved.epoch_ended(stopped=stopped, last=progress.n_iter >= hooks.n_epochs)
        except KeyboardInterrupt:
            self._optimizer.clear()  # the gradient may be incomplete
            warnings.warn("Training interrupted by user.", stacklevel=4 + DECORATORS)
            stopped = True
        if best is not None:
            best.restore()
        self._check_weights()
        hooks.fit_ends()
        if not incremental and progress.n_iter:
            self._warn(epochs, progress.n_iter if best is None else best.epoch, stopped=stopped)

    def _give_up(self, best: BestWeights | None, record: dict[str, float], epochs: Epochs) -> None:
        """End training whose loss is not finite: restore the best weights, or raise."""
        message = self._diverged(f"the loss is {record['loss']}")
        if best is None or not best.epoch:
            raise ValueError(message)
        progress = self._progress
        held_out = [name for name in progress.history.columns if name.startswith("validation_")]
        record |= dict.fromkeys(held_out, math.nan) | epochs.times
        progress.record_epoch(record, epochs.loader.n_samples, math.nan, float(self.tol))
        best.restore()
        self._optimizer.reset()  # its state may not be finite
        warnings.warn(
            f"{message}. The best weights are restored, those of epoch {best.epoch}",
            ConvergenceWarning,
            stacklevel=5 + DECORATORS,
        )

    def _warn(self, epochs: Epochs, epoch: int, *, stopped: bool) -> None:
        """Warn if training has not converged, or has converged to a useless loss.

        The weights are those after `epoch`; 0 means that they precede this call.
        """
        progress, rate = self._progress, float(self.learning_rate_init)
        curve, what = progress.loss_curve[-progress.n_iter :], ""
        if epoch:
            loss = curve[epoch - 1]
            if progress.early_stopping:  # the best epoch may have started far from where it ended
                held_out = progress.history["validation_loss"][epoch - 1 - progress.n_iter]
                loss = min(loss, held_out + epochs.penalty())
            what = explosion(loss, epochs.loss_of_zeros(self.n_outputs_), float(self.tol), rate)
        message = f"{type(self).__name__}: {what}." if what else ""
        if not stopped:
            message = not_converged(curve, self.max_iter, rate, what)
        if message:
            warnings.warn(message, ConvergenceWarning, stacklevel=5 + DECORATORS)

    def _record(
        self,
        record: dict[str, float],
        epochs: Epochs,
        held_out: Loader | None,
        *,
        incremental: bool,
    ) -> float | None:
        """Record an epoch; return the score of the validation data, if it decides when to stop."""
        score, progress = None, self._progress
        if held_out is not None:
            numbers, outputs = epochs.evaluate(held_out)
            record |= {f"validation_{name}": value for name, value in numbers.items()}
            if progress.early_stopping:
                weight = held_out.stored.sample_weight
                score = self._score_of(outputs, to_numpy(held_out.targets), weight)
                record["validation_score"] = score
        n_samples = epochs.loader.n_samples
        record |= epochs.times
        progress.record_epoch(record, n_samples, score, float(self.tol), incremental=incremental)
        if self.verbose:
            print(f"Iteration {progress.n_iter}, loss = {record['loss']:.8f}")  # noqa: T201
            if score is not None:
                print(f"Validation score: {score:f}")  # noqa: T201
            elif held_out is not None:
                print(f"Validation loss: {record['validation_loss']:.8f}")  # noqa: T201
        return score

    def _check_weights(self) -> None:
        """Check that no weight overflowed in the last step, whose loss was never computed."""
        values = [parameter.value for parameter in self._network.parameters()]
        with scope_of(values[0]):
            xp = kernels(values[0]).xp
            if not all(bool(xp.all(xp.isfinite(value))) for value in values):
                raise ValueError(self._diverged("the solver has produced non-finite weights"))

    def _diverged(self, what: str) -> str:
        epoch = self._progress.n_iter + 1
        rate = None if is_full_batch(self.solver) else float(self.learning_rate_init)
        return diverged(type(self).__name__, what, epoch, rate)
