"""What the estimators share in training: the data's way in, and scikit-learn's rules."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, validate_data

from gpunn._typing import Array
from gpunn.arrays.backend import Backend, scope_of
from gpunn.arrays.exchange import to_numpy
from gpunn.arrays.facts import dtype_name
from gpunn.data.loader import Loader
from gpunn.estimators.changes import check_place, check_unchanged
from gpunn.estimators.convergence import diverged, explosion, not_converged
from gpunn.estimators.epochs import Epochs, Order
from gpunn.estimators.fitted import ROWS, FittedNetwork, of_features
from gpunn.estimators.hooks import DECORATORS, CallbackSupportMixin, Hooks
from gpunn.estimators.labels import readable
from gpunn.estimators.origin import Origin
from gpunn.estimators.progress import Progress
from gpunn.estimators.samples import Samples, split
from gpunn.estimators.settings import as_metrics, check_solver, place_of
from gpunn.estimators.solvers import epoch_ended, make_optimizer, up_to_date
from gpunn.kernels import kernels
from gpunn.losses.base import Loss
from gpunn.nn.containers import Sequential
from gpunn.program import Program
from gpunn.training.stopping import BestWeights
from gpunn.training.trainer import Trainer


class NetworkEstimator(CallbackSupportMixin, FittedNetwork):
    """An estimator around a network.

    A subclass has scikit-learn's settings as attributes, and defines the methods that say what
    targets, loss and score are, which network there is, and how large the penalty.
    """

    #: The solvers that `learning_rate` is for; scikit-learn's networks leave Adam's alone.
    _SCHEDULED: ClassVar[tuple[str, ...]] = ("sgd",)

    #: The batch size that "auto" stands for, where there are so many samples.
    _AUTO: ClassVar[int] = 200

    def _learn_targets(self, y: Any, classes: Any, *, fresh: bool, incremental: bool) -> int:
        """Return the number of outputs; learn the labels if fresh, else check them."""
        raise NotImplementedError

    def _targets(self, y: Any, dtype: str) -> Any:
        """Return y as the loss takes it, floats in that dtype."""
        raise NotImplementedError

    def _class_weights(self, y: Any) -> Any:  # noqa: ARG002
        """Return what a sample's label makes of its weight (N,), or None."""
        return None

    def _structure(self) -> Iterator[tuple[str, Any]]:
        """Yield the settings that a network cannot change once it is there, by name."""
        raise NotImplementedError

    def _make_loss(self) -> Loss:
        """Return the loss that goes with the settings and the targets."""
        raise NotImplementedError

    def _make_network(
        self, sizes: tuple[int, int], rng: np.random.RandomState, dtype: str, place: Backend
    ) -> Sequential:
        """Return a network of that many inputs and outputs."""
        raise NotImplementedError

    def _decay(self, total: float) -> Callable[[float], float]:
        """Return what makes a batch's weight decay of its mass; all data have mass `total`."""
        raise NotImplementedError

    def _score_of(self, outputs: Array, target: Any, weight: Any) -> float:
        """Return the score of outputs, for early stopping."""
        raise NotImplementedError

    # Training

    def _fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        validation: Samples | None = None,
        classes: Any = None,
        incremental: bool = False,
    ) -> Any:
        """Train. A call that fails leaves the estimator as it was."""
        fresh = not self.__sklearn_is_fitted__() or not (self.warm_start or incremental)
        before = dict(vars(self))
        weights = None if fresh else BestWeights(self._network)
        undo = None if fresh else self._progress.mark()
        begun = False
        try:
            given = Samples(X, y, sample_weight)
            epochs, held_out = self._prepare(given, validation, classes, fresh, incremental)
            hooks = Hooks(
                self,
                1 if incremental else self.max_iter,
                {"X": X, "y": y, "metadata": _metadata(sample_weight)},
                self._as_if_fitted,
            )
            begun = True
            self._train(epochs, held_out, hooks, incremental=incremental)
        except BaseException:  # an interrupt before training, too
            for name in vars(self).keys() - before.keys():
                if "callback" not in name:  # they are yet to be told
                    delattr(self, name)
            self.__dict__.update(before)
            if undo is not None:
                undo()
            if begun and weights is not None:
                weights.restore()
                self._optimizer.reset()  # it saw what was not finite
            raise
        return self

    def _prepare(
        self,
        given: Samples,
        validation: Samples | None,
        classes: Any,
        fresh: bool,  # noqa: FBT001
        incremental: bool,  # noqa: FBT001
    ) -> tuple[Epochs, Loader | None]:
        """Return what to run over the data, and the data held out, if any."""
        name = type(self).__name__
        check_solver(name, self.solver)
        if incremental and self.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True")
        if not fresh:
            check_unchanged(name, self._made, self._structure())
            home = self._network.backend
            assert home is not None  # noqa: S101
            check_place(name, self._made, self.backend, self.device, home)
        train = self._validated(given, reset=fresh)
        self._origin = Origin.of(train.x)
        n_outputs = self._learn_targets(train.y, classes, fresh=fresh, incremental=incremental)
        rng = self._random_state = check_random_state(self.random_state)
        if fresh:
            place = place_of(name, self.backend, self.device, self._origin.backend)
            dtype = dtype_name(train.x)
            self._begin((train.x.shape[1], n_outputs), rng, dtype, place)
        else:
            self._progress.begin(early_stopping=self.early_stopping)
            if incremental:
                held = self._optimizer
                self._optimizer = up_to_date(self, held, self._made["solver"])
            else:
                self._optimizer = make_optimizer(self)
            self._made = self._made | {"solver": self.solver}
        train = self._encoded(train)
        total = float(train.x.shape[0] if train.weight is None else train.weight.sum())
        held_out = None
        if validation is not None:
            held_out = self._encoded(self._validated(validation, reset=False))
        elif self.early_stopping:
            binary = getattr(getattr(self, "_labels", None), "kind", None) == "binary"
            train, held_out = split(train, self.validation_fraction, rng, stratify=binary)
        return self._epochs(train, rng, total), self._loader(held_out)

    def _begin(
        self, sizes: tuple[int, int], rng: np.random.RandomState, dtype: str, place: Backend
    ) -> None:
        """Make a network of that many inputs and outputs, and what trains it."""
        self._made = {
            **dict(self._structure()),
            "backend": self.backend,
            "device": self.device,
            "solver": self.solver,
        }
        self._loss = self._make_loss()
        self._network = self._make_network(sizes, rng, dtype, place)
        self._dropout_rng = _generator(rng) if self._is_random() else None
        self._program = Program()
        self._progress = Progress(self.early_stopping)
        self._optimizer = make_optimizer(self)

    def _validated(self, given: Samples, *, reset: bool) -> Samples:
        """Return the data as arrays, checked as scikit-learn checks them."""
        X, y, sample_weight = given
        y, weight = readable(y), None
        with scope_of(X):  # scikit-learn brings arrays of CuPy's to the current device
            X, y = validate_data(self, X, y, reset=reset, **of_features(X), **self._checks())
            if sample_weight is not None:
                weight = to_numpy(_check_sample_weight(sample_weight, X, ensure_non_negative=True))
        return Samples(X, y, weight)

    def _encoded(self, samples: Samples) -> Samples:
        """Return y as the loss takes it, and weights that those of its classes have gone into."""
        y, weight = self._targets(samples.y, self._dtype), samples.weight
        by_class = self._class_weights(samples.y)
        if by_class is not None:
            weight = by_class if weight is None else weight * by_class
        if weight is not None and not weight.sum() > 0:
            raise ValueError(
                f"{type(self).__name__}: the sample weights sum to zero; some must be above it"
            )
        return Samples(samples.x, y, weight)

    def _checks(self) -> dict[str, Any]:
        """Return what scikit-learn is to check of X and y together."""
        return {"multi_output": True}

    def _epochs(self, train: Samples, rng: np.random.RandomState, total: float) -> Epochs:
        """Return what runs the network over the training data."""
        n_samples = train.x.shape[0]
        batch_size = min(self._AUTO, n_samples) if self.batch_size == "auto" else self.batch_size
        if batch_size > n_samples:
            warnings.warn(
                f"Got `batch_size` {batch_size}, more than there are samples; it is clipped to "
                f"{n_samples}",
                stacklevel=5 + DECORATORS,
            )
            batch_size = n_samples
        order = Order(n_samples, batch_size, rng if self.shuffle else None, train.weight)
        loader = self._loader(train, batch_size, shuffle=order if self.shuffle else False)
        assert loader is not None  # noqa: S101
        given = as_metrics(type(self).__name__, self.metrics)
        metrics = [self._metric(metric) for metric in given]
        trainer = Trainer(self._network, self._loss, self._optimizer, metrics=metrics)
        trainer.check(loader)
        return Epochs(
            self._network,
            self._loss,
            self._optimizer,
            loader,
            order,
            decay=self._decay(total),
            scale=self._loss_scale(),
            metrics=trainer.metrics,
            rng=self._dropout_rng,
            program=self._program,
        )

    def _loader(
        self, samples: Samples | None, batch_size: int = ROWS, *, shuffle: Any = False
    ) -> Loader | None:
        """Return batches of samples where the network is."""
        if samples is None:
            return None
        return Loader(
            samples.x,
            samples.y,
            sample_weight=samples.weight,
            batch_size=min(batch_size, samples.x.shape[0]),
            shuffle=shuffle,
            backend=self._network.backend,
            dtype=self._dtype,
        )

    def _train(
        self, epochs: Epochs, held_out: Loader | None, hooks: Hooks, *, incremental: bool
    ) -> None:
        """Run epochs until patience is at an end."""
        progress = self._progress
        best = BestWeights(self._network) if progress.early_stopping else None
        if best is not None and progress.best_score is not None:
            best.loss = -progress.best_score
        stopped = False
        try:
            while not stopped and progress.n_iter < hooks.n_epochs:
                hooks.epoch_begins()
                record = epochs.run()
                if not math.isfinite(record["loss"]):
                    self._give_up(best, record["loss"])
                    stopped = True
                    break
                score = self._note(record, epochs, held_out, incremental=incremental)
                if best is not None and score is not None:
                    best.offer(progress.n_iter, -score)
                # A call of partial_fit is no epoch of fit: it neither lowers rates nor ends.
                stopped = not incremental and epoch_ended(self, progress, self._optimizer)
                stopped = hooks.epoch_ends() or stopped
        except KeyboardInterrupt:
            self._optimizer.clear()  # half of a gradient may be there
            warnings.warn("Training interrupted by user.", stacklevel=4 + DECORATORS)
            stopped = True
        if best is not None:
            best.restore()
        self._check_weights()
        hooks.fit_ends()
        if not incremental and progress.n_iter:
            self._warn(epochs, progress.n_iter if best is None else best.epoch, stopped=stopped)

    def _give_up(self, best: BestWeights | None, loss: float) -> None:
        """End training whose loss is not finite, with the best weights, if there are any."""
        message = self._diverged(f"the loss is {loss}")
        if best is None or not best.epoch:
            raise ValueError(message)
        best.restore()
        self._optimizer.reset()  # it saw what was not finite
        warnings.warn(
            f"{message}. The weights are the best ones again, those of epoch {best.epoch}",
            ConvergenceWarning,
            stacklevel=5 + DECORATORS,
        )

    def _warn(self, epochs: Epochs, epoch: int, *, stopped: bool) -> None:
        """Warn if training has not converged, or to what is no solution.

        `epoch` is the one whose weights there are; 0 if they are older than this call.
        """
        progress, rate = self._progress, self.learning_rate_init
        curve, what = progress.loss_curve[-progress.n_iter :], ""
        if epoch:
            loss = curve[epoch - 1]
            if self.early_stopping:  # the steps of the best epoch may have begun far from its end
                held_out = progress.history["validation_loss"][epoch - 1 - progress.n_iter]
                loss = min(loss, held_out + epochs.penalty())
            what = explosion(loss, epochs.loss_of_zeros(self.n_outputs_), self.tol, rate)
        message = f"{type(self).__name__}: {what}." if what else ""
        if not stopped:
            message = not_converged(curve, self.max_iter, rate, what)
        if message:
            warnings.warn(message, ConvergenceWarning, stacklevel=5 + DECORATORS)

    def _note(
        self,
        record: dict[str, float],
        epochs: Epochs,
        held_out: Loader | None,
        *,
        incremental: bool,
    ) -> float | None:
        """Take down an epoch's numbers; return the score of the data held out."""
        score = None
        if held_out is not None:
            numbers, outputs = epochs.evaluate(held_out)
            record |= {f"validation_{name}": value for name, value in numbers.items()}
            if self.early_stopping:
                weight = held_out.stored.sample_weight
                score = self._score_of(outputs, to_numpy(held_out.targets), weight)
                record["validation_score"] = score
        progress, n_samples = self._progress, epochs.loader.n_samples
        record |= epochs.times
        progress.note(record, n_samples, score, self.tol, incremental=incremental)
        if self.verbose:
            print(f"Iteration {progress.n_iter}, loss = {record['loss']:.8f}")  # noqa: T201
            if score is not None:
                print(f"Validation score: {score:f}")  # noqa: T201
            elif held_out is not None:
                print(f"Validation loss: {record['validation_loss']:.8f}")  # noqa: T201
        return score

    def _check_weights(self) -> None:
        """Check that no weight has overflowed in the last step, whose loss nobody has seen."""
        values = [parameter.value for parameter in self._network.parameters()]
        with scope_of(values[0]):
            xp = kernels(values[0]).xp
            if not all(bool(xp.all(xp.isfinite(value))) for value in values):
                raise ValueError(self._diverged("the solver has produced non-finite weights"))

    def _diverged(self, what: str) -> str:
        epoch, rate = self._progress.n_iter + 1, self.learning_rate_init
        return diverged(type(self).__name__, what, epoch, rate)

    def _metric(self, metric: Any) -> Any:
        return metric

    def _loss_scale(self) -> float:
        """Return what the loss that is reported is multiplied by."""
        return 1.0

    def _is_random(self) -> bool:
        """Return whether the network draws masks."""
        return False


def _metadata(sample_weight: Any) -> dict[str, Any]:
    return {} if sample_weight is None else {"sample_weight": sample_weight}


def _generator(rng: np.random.RandomState) -> np.random.Generator:
    """Return a generator whose seed is drawn from `rng`."""
    return np.random.default_rng(rng.randint(2**31 - 1))
