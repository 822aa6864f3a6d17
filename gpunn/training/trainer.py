"""The training loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any, TypeAlias, TypeVar

from gpunn._typing import RNG, Array
from gpunn.arrays.backend import scope_of
from gpunn.arrays.capacity import memory_for
from gpunn.arrays.checks import one_of, whole_number
from gpunn.arrays.exchange import to_numpy
from gpunn.arrays.settings import checked
from gpunn.arrays.state import all_or_nothing
from gpunn.data.loader import Loader
from gpunn.errors import (
    DataError,
    DeviceError,
    DeviceMemoryError,
    SettingError,
    ShapeError,
)
from gpunn.losses.base import Loss
from gpunn.nn.init import as_generator
from gpunn.nn.layer import Layer
from gpunn.nn.tree import entrance
from gpunn.optim.base import Optimizer
from gpunn.program import Program, release
from gpunn.training.arguments import (
    as_callbacks,
    as_metrics,
    check_early_stopping,
    check_parts,
    check_unchanged,
    report_newcomers,
    takes_a_loader,
)
from gpunn.training.bar import progress_bar
from gpunn.training.checkpoint import Checkpoint
from gpunn.training.epoch import memory_advice
from gpunn.training.exclusive import by_average, trained_alone
from gpunn.training.freezing import part_of
from gpunn.training.heads import check_head
from gpunn.training.history import History, columns_of
from gpunn.training.inference import evaluate, predict
from gpunn.training.loaders import Data, as_loader, loader_of
from gpunn.training.metrics import Metric
from gpunn.training.ordering import in_order
from gpunn.training.ranks import by_all_ranks, ranks_of
from gpunn.training.readings import Readings
from gpunn.training.run import Run, load_trainer_state, trainer_state
from gpunn.training.stopping import BestWeights, EarlyStopping, follow

#: Called after each epoch with the trainer and the history so far; returning True ends training.
Callback: TypeAlias = "Callable[[Trainer, History], object]"

_Result = TypeVar("_Result")


class Trainer:
    """A loop around `train_step`: epochs, validation, early stopping, history.

    On a GPU, results and model may be used on any stream once a method has returned.

    Parameters
    ----------
    model : Layer
        The model to train.
    loss : Loss
        With reduction "mean" or "sum".
    optimizer : Optimizer
        Built on all or some of ``model.parameters()``, after ``model.to(...)``. The other
        parameters do not change (buffers do: a `BatchNorm` follows the batches). A layer added
        later is an error if the optimizer does not hold its parameters.
        If it has a `WeightAverage`, the averaged weights are validated, evaluated, used for
        predictions, and kept as the best weights.
    metrics : sequence of str or Metric, optional
        Computed for each batch, in training and validation: ``"accuracy"``, ``"top_k"``,
        ``"binary_accuracy"``, ``"r2"``, ``"mae"``, ``"perplexity"`` or objects.
    rng : None, int or numpy.random.Generator, default None
        The seed or generator of dropout's masks.
    accumulate : int, default 1
        Batches per update, at least 1: trains as with batches that many times larger, in the
        memory of one. Gradients are averaged over all their samples, by weight, so an update
        equals that of the large batch even where the last batch is smaller; an epoch's last update
        takes the remaining batches. The learning rate's schedule counts updates. Masks of
        `Dropout` and statistics of `BatchNorm` are those of each small batch. With more than 1,
        steps are not recorded.

    Raises
    ------
    SettingError
        If the parts do not fit together, such as a model that ends in softmax and a loss that
        applies it again.
    """

    accumulate: int = checked(whole_number)

    def __init__(
        self,
        model: Layer,
        loss: Loss,
        optimizer: Optimizer,
        *,
        metrics: Sequence[str | Metric] = (),
        rng: RNG = None,
        accumulate: int = 1,
    ) -> None:
        check_parts("Trainer", model, loss, optimizer)
        if loss.reduction == "none":
            raise SettingError("Trainer: the loss must reduce to one number; reduction is 'none'")
        self._known = frozenset(model.parameters())
        if not self._known.issuperset(optimizer.parameters):
            raise SettingError(
                "Trainer: the optimizer holds parameters that are not the model's; "
                "build it on model.parameters()"
            )
        check_head(model, loss)
        report_newcomers("Trainer", model, optimizer)
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.metrics = as_metrics(metrics, loss)
        self.accumulate = accumulate
        self._rng = as_generator(rng)
        self._program, self._evaluation, self._prediction = Program(), Program(), Program()

    @takes_a_loader
    @by_all_ranks
    @in_order
    def fit(
        self,
        loader: Loader,
        epochs: int,
        *,
        validation: Data | None = None,
        early_stopping: EarlyStopping | None = None,
        callbacks: Iterable[Callback] = (),
        resume: str | os.PathLike[str] | Checkpoint | None = None,
        progress: bool | None = None,
    ) -> History:
        """Train for a number of epochs, or until early stopping or a callback ends it.

        Parameters
        ----------
        loader : Loader
            The training data; each epoch iterates over it once.
        epochs : int
            The maximum number of passes over the data, at least 1.
        validation : Loader or (x, y) or (x, y, sample_weight), optional
            Evaluated after each epoch.
        early_stopping : EarlyStopping, optional
            When to stop, and whether to restore the best weights.
        callbacks : iterable of functions
            Each is called after each epoch as ``callback(trainer, history)``; training ends when
            one returns True. A `Checkpoint` writes files from which training can resume.
        resume : path or Checkpoint, optional
            Resume from this file, or from the newest file of a `Checkpoint` if there is one.
            `epochs` and the history then include the earlier epochs.
        progress : bool or None, default None
            Whether to show a progress bar; None does so if the output is a terminal.

        Returns
        -------
        History
            Also returned after Ctrl-C, which ends training without an exception. Weights and
            optimizer are then those of the last whole step, unless early stopping restores the
            best weights (in the first epoch, the initial ones); the generator of dropout's masks
            may be ahead.

        Raises
        ------
        DivergenceError
            If an epoch's loss is not finite. The model then has the weights of its best epoch, and
            the error's `history` is the history so far.
        DeviceError, DTypeError, ShapeError, LabelError, DataError
            Before the first epoch, if model, loss and data do not fit together.
        SettingError
            If the model has new parameters that the optimizer does not hold.
        FileError
            If a checkpoint cannot be written, or `resume` cannot be read. Earlier files are
            intact, and training can continue.
        BusyError
            If another thread is training the same parameters.
        DistributedError
            If the other processes train something else, or one of them has ended.
        StateError
            If `resume` holds the state of other objects; nothing has changed.
        """
        epochs = whole_number("Trainer.fit", "epochs", epochs)
        one_of("Trainer.fit", "progress", progress, (None, True, False))
        check_early_stopping(early_stopping)
        callbacks = as_callbacks(callbacks)
        self.check(loader)
        if validation is not None:
            validation = self._as_loader("Trainer.fit, validation", validation)
            self._check_data(validation)
        penalized = self.optimizer.penalty() is not None
        columns = columns_of(self.metrics, penalized=penalized, validated=validation is not None)
        history = follow(early_stopping, columns, appended=bool(callbacks))
        bar = progress_bar(epochs * len(loader), show=progress)
        with closing(bar), trained_alone("Trainer.fit", self.optimizer.parameters):
            self.optimizer.clear()
            part_of(self.model, self.optimizer)  # the optimizer may have been used elsewhere
            if not self._program.is_recorded:
                release(self._evaluation, self._prediction)  # the steps need memory
            parts: Any = {"validation": validation, "early_stopping": early_stopping}
            run = Run(self, loader, history, epochs, **parts, callbacks=callbacks, bar=bar)
            run.start(resume)
            run.go()
        if early_stopping is not None and early_stopping.restore_best:
            self._go_back_to(run.best, history)
        return history

    def state_dict(self) -> dict[str, Any]:
        """Return the state of model, optimizer and the generator of dropout's masks.

        The arrays are those in use: copy or write them before training continues. `Checkpoint`
        also stores the history and the position in an epoch.
        """
        return trainer_state(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state, on the device where the model is.

        Raises
        ------
        StateError
            If it is the state of another model or optimizer; nothing has changed.
        """
        with all_or_nothing(self):
            self._load(state)

    def _load(self, state: Mapping[str, Any]) -> None:
        load_trainer_state(self, state)

    def explain(self) -> str:
        """Return how the model runs, and why: as recorded steps, or step by step.

        A step that does all its work in kernels is recorded and compiled; any other runs as the
        layers are written. The results are the same to rounding.

        Returns
        -------
        str
            One line each for the latest training, evaluation and prediction.

        Examples
        --------
        >>> import gpunn as gn
        >>> model = gn.Dense(3, 2, rng=0)
        >>> trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), gn.SGD(model.parameters()))
        >>> print(trainer.explain())
        training:   nothing has run yet
        evaluation: nothing has run yet
        prediction: nothing has run yet
        """
        ways = {
            "training:": self._program,
            "evaluation:": self._evaluation,
            "prediction:": self._prediction,
        }
        return "\n".join(f"{name:11} {program.explain()}" for name, program in ways.items())

    @property
    def why_not_recorded(self) -> str:
        """Why the steps of the last epoch were not recorded; empty if they were."""
        return self._program.why_not

    @by_all_ranks
    @in_order
    def evaluate(self, data: Data) -> dict[str, float]:
        """Return the loss and the metrics over all of the data, by name.

        Parameters
        ----------
        data : Loader or (x, y) or (x, y, sample_weight)
            A loader is read in order and to its end, whatever its settings. Several processes
            share the samples of arrays, and of a loader that has their communicator; all of them
            must call this method.
        """
        loader = self._as_loader("Trainer.evaluate", data)
        self._check_data(loader)
        return self._evaluate(loader)

    def _as_loader(self, owner: str, data: Data) -> Loader:
        parallel = self.optimizer.parallel
        communicator = None if parallel is None else parallel.communicator
        return as_loader(owner, data, self.model, self._rng, communicator)

    @in_order
    def predict(self, x: Any, *, batch_size: int = 1024) -> Array:
        """Return the model's outputs for all of `x`, as one array (N, outputs) on its device.

        A single output has shape (N, 1): use ``[:, 0]`` to compare it with a target (N,).

        Parameters
        ----------
        x : array or Loader
            Shape (N, ...). An array is moved and converted as `Loader` does.
        batch_size : int, default 1024
            Samples per pass.
        """
        batch_size = whole_number("Trainer.predict", "batch_size", batch_size)
        rng, size = self._rng, batch_size
        loader = x if isinstance(x, Loader) else loader_of(self.model, rng, x, batch_size=size)
        with by_average("Trainer.predict", self.optimizer):
            return self._with_room_for(lambda: predict(self.model, loader, self._prediction))

    @in_order
    def predict_proba(self, x: Any, *, batch_size: int = 1024) -> Array:
        """Return the probabilities that the loss reads from the model's outputs.

        These are softmax(outputs) with `SoftmaxCrossEntropy`, sigmoid(outputs) with
        `BinaryCrossEntropy`, and the outputs themselves where they already are probabilities or
        the loss defines none.
        """
        outputs = self.predict(x, batch_size=batch_size)
        with scope_of(outputs):
            return self.loss.probabilities(outputs)

    def _evaluate(self, loader: Loader) -> dict[str, float]:
        def work() -> Readings:
            readings = Readings(self.loss, self.metrics)
            evaluate(self.model, loader, readings, self._evaluation)
            return readings

        ranks = ranks_of(self.optimizer)
        ranks.check_share(loader)
        with by_average("Trainer.evaluate", self.optimizer):
            readings = self._with_room_for(work)
        with loader.backend.scope():
            return (ranks.gathered(readings) if loader.share.size > 1 else readings).read()

    def _with_room_for(self, work: Callable[[], _Result]) -> _Result:
        """Call `work`; if memory runs out, release what captured steps keep, and try again."""
        try:
            return work()
        except DeviceMemoryError:
            programs = self._program, self._evaluation, self._prediction
            if not release(*programs):
                raise
        return work()

    @takes_a_loader
    def check(self, loader: Loader) -> None:
        """Check that model, loss and data fit, on one sample and all targets and weights."""
        check_unchanged(self.model, self.optimizer, self._known)
        self._check_data(loader)

    def _check_data(self, loader: Loader) -> None:
        self._check_home(loader)
        if loader.targets is None:
            raise DataError("Trainer: the loader has no targets; say Loader(x, y)")
        weight = loader.stored.sample_weight
        if weight is not None and not to_numpy(weight).any():
            raise DataError(
                "Trainer: every sample_weight is 0, so there is nothing to learn from or to "
                "evaluate; leave sample_weight out, or give some samples a weight above 0"
            )
        with memory_for("a batch", loader.backend, memory_advice(loader)):
            # A transform that keeps the shape is not called: it may be random.
            first = loader.plain_row() if loader.is_plain else loader.first_row()
        try:
            output = self.model(first.x)
        except ShapeError as error:
            shape = tuple(loader.stored.x.shape)
            raise ShapeError(f"{error} (tried on one sample of the loader's x, {shape})") from error
        if loader.integers is not None:
            entrance(self.model).check_integers(*loader.integers)
        self.loss.check_target(loader.targets, tuple(output.shape[1:]))
        with scope_of(output):
            for metric in self.metrics:
                metric.measure(output, first.y)

    def _check_home(self, loader: Loader) -> None:
        """Check that model, optimizer and batches are on one device."""
        self.optimizer.check_places()
        home = self.model.backend
        if home is not None and home != loader.backend:
            raise DeviceError(
                f"Trainer: the model is on {home} and the loader's batches on {loader.backend}; "
                f"say Loader(..., backend={str(home)!r}), or model.to({str(loader.backend)!r}) "
                "before building the optimizer"
            )

    def _go_back_to(self, best: BestWeights, history: History) -> None:
        """Restore the best weights, unless epochs have run and none had a finite value."""
        if len(history) and not best.epoch:
            return
        best.restore()
        if self.optimizer.average is not None:
            self.optimizer.average.restart()  # the best weights are an average

    def __repr__(self) -> str:
        """Return the trainer with its model, loss and optimizer."""
        return f"Trainer({self.model!r}, {self.loss!r}, {self.optimizer!r})"
