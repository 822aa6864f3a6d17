"""Minibatches: arrays in, batches on a device out."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, Literal, NamedTuple

import numpy as np

from gpunn._typing import RNG, Array
from gpunn.arrays.backend import Backend, backend_of, get_backend
from gpunn.arrays.checks import flag, one_of, whole_number
from gpunn.arrays.facts import dtype_name, is_out_of_memory, size_of
from gpunn.arrays.memory import copy_of, read_only
from gpunn.arrays.settings import checked
from gpunn.data import validation
from gpunn.data.lending import is_lent
from gpunn.errors import DeviceMemoryError, SettingError, ShapeError
from gpunn.kernels import kernels
from gpunn.nn.init import as_generator

#: "auto" takes at most this share of the memory that is free.
_SHARE_OF_MEMORY = 0.5

#: Small batches are taken from the data together, so many bytes at a time.
_BYTES_AT_ONCE = 2 << 20


class Batch(NamedTuple):
    """One minibatch, on the device.

    It has three parts, always: unpack it as ``x, y, sample_weight``, also where a loader has no
    weights or no targets, or take its parts by name, ``batch.x`` and ``batch.y``.

    Attributes
    ----------
    x : array
        (N, ...).
    y : array or None
        (N, ...); None if the loader has no targets.
    sample_weight : array or None
        (N,); None for equal weights.
    """

    x: Array
    y: Array | None = None
    sample_weight: Array | None = None


class Loader:
    """Shuffled minibatches of arrays, on a device.

    Iterating over a loader is one epoch. The order is drawn on the host, so one seed gives the same
    batches on every backend. A batch that is a view of the data (without shuffling, on NumPy)
    refuses to be written to; any other is a copy, and yours.

    `batch_size`, `shuffle`, `block_size`, `window`, `drop_last` and `transform` may be set later as
    attributes; they are checked then, too, and hold from the next epoch on.

    Parameters
    ----------
    x : array
        Features (N, ...), of any library, or what `numpy.asarray` takes: NumPy, CuPy, memmap,
        DLPack, lists; a frame of pandas whose columns hold numbers or booleans, nullable ones
        without gaps; or a sparse matrix of SciPy, of which each batch is made dense.
    y : array, optional
        Targets (N, ...). Integers and booleans stay what they are (class labels); floats get
        `dtype`.
    batch_size : int or None, default 32
        From 1 to N. None is the full batch, and so is the default if there are fewer samples.
    sample_weight : array, optional
        (N,), not negative, and finite as `dtype`.
    backend : str, Backend or None, default None
        Where the batches go. None is where `x` is, if that is a GPU; else what `gpunn.use` has
        set, else NumPy.
    shuffle : bool, "blocks" or function, default True
        Whether each epoch has a new order. "blocks" is for data larger than memory: blocks of
        consecutive rows in a new order, and the rows shuffled within a window of some blocks. A
        function without arguments returns an epoch's order itself, N indices of samples.
    block_size : int, default 1024
        Rows a block, at least 1.
    window : int, default 16
        Blocks a window, at least 1.
    drop_last : bool, default False
        Whether to leave out a last batch of fewer than `batch_size` samples.
    dtype : {"float32", "float64", None}, default "float32"
        What features (and float targets and weights) are converted to, on the device. None keeps
        what is stored.
    transform : function, optional
        Applied to the `x` of each batch, on the device, after the conversion. The array is its
        own: it may write to it and return it.
    resident : bool or "auto", default "auto"
        Whether the data are brought to the device once, converted, and batches are gathered there;
        else each batch is gathered on the host, sent as it is stored, and converted on the device.
        What is brought may be the given array itself or a copy: do not change that while training.
        "auto" does so unless `x` is a memmap, is sparse (which stays so), or would take more than
        half of the free memory.
    check_finite : bool, default False
        Whether to look first for NaN, infinity, and numbers that are infinite as `dtype`.
    rng : None, int or numpy.random.Generator, default None
        The seed of the order.

    Attributes
    ----------
    backend : Backend
        Where the batches go.
    resident : bool
        Whether the data are on the device.
    stored : Batch
        The whole data set, where it is stored; to be read only.
    n_samples : int
        The number of samples.

    Raises
    ------
    DataError
        If the data are empty, of unequal lengths, or not finite where that is checked.
    DTypeError
        If an array does not hold real numbers.
    SettingError
        If `batch_size` or another setting is outside of its interval.

    Examples
    --------
    >>> import numpy as np, gpunn as gn
    >>> loader = gn.Loader(np.zeros((10, 3)), np.zeros(10, dtype=int), batch_size=4, rng=0)
    >>> [batch.x.shape for batch in loader]
    [(4, 3), (4, 3), (2, 3)]

    A batch has three parts, and the last is None without weights:

    >>> for x, y, weight in loader:
    ...     print(x.shape, y.shape, weight)
    (4, 3) (4,) None
    (4, 3) (4,) None
    (2, 3) (2,) None
    """

    shuffle: bool | Literal["blocks"] | Callable[[], Any] = checked(validation.check_shuffle)
    block_size: int = checked(whole_number)
    window: int = checked(whole_number)
    drop_last: bool = checked(flag)
    transform: Callable[[Array], Array] | None = checked(validation.check_transform)

    def __init__(
        self,
        x: Any,
        y: Any = None,
        *,
        batch_size: int | None = validation.DEFAULT_BATCH_SIZE,
        sample_weight: Any = None,
        backend: str | Backend | None = None,
        shuffle: bool | Literal["blocks"] | Callable[[], Any] = True,
        block_size: int = 1024,
        window: int = 16,
        drop_last: bool = False,
        dtype: str | None = "float32",
        transform: Callable[[Array], Array] | None = None,
        resident: bool | Literal["auto"] = "auto",
        check_finite: bool = False,
        rng: RNG = None,
    ) -> None:
        if isinstance(dtype, np.dtype):
            dtype = dtype.name
        one_of("Loader", "dtype", dtype, ("float32", "float64", None))
        one_of("Loader", "resident", resident, (True, False, "auto"))
        self.shuffle = shuffle
        self.block_size = block_size
        self.window = window
        self.drop_last = drop_last
        self.transform = transform
        self.stored = Batch(
            validation.as_array("x", x),
            None if y is None else validation.as_array("y", y),
            None if sample_weight is None else validation.as_array("sample_weight", sample_weight),
        )
        #: The targets where and as they were given, for checks that need not wait for a device.
        self.targets = self.stored.y
        self.n_samples = validation.check_lengths(self.stored._asdict())
        y = self.stored.y
        self._dtypes = (dtype, None if y is None else _target_dtype(y, dtype), dtype)
        validation.check_weight(self.stored.sample_weight, dtype)
        if flag("Loader", "check_finite", check_finite):
            validation.check_finite(self.stored._asdict(), self._dtypes)
        self.batch_size = batch_size
        self.dtype = dtype
        self.backend = _choose_backend(backend, self.stored.x)
        self._rng = as_generator(rng)
        if resident is True and validation.is_sparse(self.stored.x):
            raise SettingError("Loader: sparse x cannot be resident; make it dense, x.toarray()")
        self.resident = self._fits() if resident == "auto" else resident
        if self.resident:
            with self.backend.scope():
                self.stored = self._bring_all()
        held = (part for part in self.stored if part is not None)
        self._bytes_per_sample = max(1, sum(map(size_of, held)) // self.n_samples)

    @property
    def batch_size(self) -> int:
        """The number of samples in a batch, but for the last one."""
        return self._batch_size

    @batch_size.setter
    def batch_size(self, batch_size: int | None) -> None:
        self._batch_size = validation.check_batch_size(batch_size, self.n_samples)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        whole, rest = divmod(self.n_samples, self.batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    def __iter__(self) -> Generator[Batch, None, None]:
        """Yield the batches of one epoch, each of three parts: x, y, sample_weight."""
        return self._batches(self.draw_order(), self.n_turns)

    def in_order(self) -> Generator[Batch, None, None]:
        """Yield all samples in their own order, whatever the settings; draws nothing from `rng`."""
        return self._batches(None, self.n_samples)

    def first_row(self) -> Batch:
        """Return the first sample as a batch of one."""
        return next(self._batches(None, 1))

    @property
    def n_turns(self) -> int:
        """The number of samples in an epoch."""
        return min(self.n_samples, len(self) * self.batch_size)

    @property
    def is_plain(self) -> bool:
        """Whether batches are rows of the data and nothing else: nothing is done to each of them.

        An epoch's batches are then the rows that `draw_order` returns, up to `n_turns` of them.
        """
        return type(self) is Loader and self.transform is None

    def rows(self) -> Batch | None:
        """Return all of the data, where they are in one place and as batches have them."""
        if not self.is_plain:
            return None
        if self.resident:
            return self.stored
        here = self.backend.package == "numpy" and all(
            part is None or (isinstance(part, np.ndarray) and dtype in (None, part.dtype.name))
            for part, dtype in zip(self.stored, self._dtypes, strict=True)
        )
        return self.stored if here else None

    def groups(self, order: Any, stop: int) -> Generator[Batch, None, None]:
        """Yield the rows before `stop`, in that order, several whole batches at a time."""
        for rows in self._groups(min(stop, self.n_samples)):
            yield self._stream(rows, order)

    def _groups(self, stop: int) -> list[slice]:
        """Return rows that are fetched together: as many batches as are worth it."""
        at_once = max(1, _BYTES_AT_ONCE // (self.batch_size * self._bytes_per_sample))
        size = at_once * self.batch_size
        return [slice(start, min(start + size, stop)) for start in range(0, stop, size)]

    def draw_order(self) -> Any:
        """Return the order of one more epoch, drawn on the host, or None for the data's own."""
        if callable(self.shuffle):
            return validation.check_order(self.shuffle(), self.n_samples)
        if self.shuffle == "blocks":
            return blocked_permutation(self._rng, self.n_samples, self.block_size, self.window)
        return self._rng.permutation(self.n_samples) if self.shuffle else None

    def _batches(self, order: Any, stop: int) -> Generator[Batch, None, None]:
        """Yield the rows before `stop`, in that order, or in their own for None."""
        stop = min(stop, self.n_samples)
        starts = range(0, stop, self.batch_size)
        rows = [slice(start, min(start + self.batch_size, stop)) for start in starts]
        on_host = all(part is None or isinstance(part, np.ndarray) for part in self.stored)
        # Rows of NumPy's arrays refuse to be written to, and those of sparse ones are made.
        guarded = on_host or (
            validation.is_sparse(self.stored.x) and self.backend.package == "numpy"
        )
        staged = self.backend.package == "cupy" and not self.resident and on_host
        batches = (self._staged if staged else self._fetched)(rows, order)
        if order is None and not guarded and (self.transform is not None or not is_lent()):
            batches = _copies(batches)
        if self.transform is not None:
            batches = self._transformed(batches)
        return self._on_device(batches) if self.backend.package == "cupy" else batches

    def _on_device(self, batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
        """Make each batch while the backend's device is the current one, and only then."""
        with closing(batches):
            while True:
                with self.backend.scope():
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch

    def _fetched(self, rows: list[slice], order: Any) -> Generator[Batch, None, None]:
        """Take the rows of several small batches at a time, and hand them out as views."""
        if self.resident and order is not None:
            order = self.backend.asarray(order)  # once an epoch
        fetch = self._gather if self.resident else self._stream
        at_once = max(1, _BYTES_AT_ONCE // (self.batch_size * self._bytes_per_sample))
        within: list[Any] = []
        for i in range(0, len(rows), at_once):
            some = rows[i : i + at_once]
            first = some[0].start
            x, y, weight = taken = fetch(slice(first, some[-1].stop), order)
            if len(some) == 1:
                yield taken
                continue
            if i == 0 or i + at_once >= len(rows):  # groups are alike but for the last one
                within = [(slice(own.start - first, own.stop - first), ...) for own in some]
            for own in within:
                yield Batch(
                    x[own],
                    None if y is None else y[own],
                    None if weight is None else weight[own],
                )

    def _staged(self, rows: list[slice], order: Any) -> Generator[Batch, None, None]:
        """Gather and send each batch to a GPU ahead of the one that is computed on."""
        from gpunn.data.staging import stage  # noqa: PLC0415 (imports CuPy)

        held = {name: part for name, part in self.stored._asdict().items() if part is not None}
        kept = zip(self.stored, self._dtypes, strict=True)
        dtypes = [dtype for part, dtype in kept if part is not None]
        chosen = rows if order is None else [order[some] for some in rows]
        with closing(stage(list(held.values()), chosen, self.batch_size, dtypes)) as batches:
            for arrays in batches:
                yield Batch(**dict(zip(held, arrays, strict=True)))

    def _gather(self, rows: slice, order: Array | None) -> Batch:
        """Take rows of data that are on the device."""
        if order is None:
            return Batch(*(None if part is None else part[rows, ...] for part in self.stored))
        held = [part for part in self.stored if part is not None]
        taken = iter(kernels(held[0]).gather(held, order[rows]))
        return Batch(*(None if part is None else next(taken) for part in self.stored))

    def _stream(self, rows: slice, order: Any) -> Batch:
        """Take rows where the data are stored, send them as they are, convert them there."""
        return self._bring(Batch(*(_take(part, rows, order) for part in self.stored)))

    def _bring(self, batch: Batch) -> Batch:
        """Return arrays on the device, in the dtypes that batches have."""
        bring, wanted = self.backend.asarray, zip(batch, self._dtypes, strict=True)
        return Batch(*(None if part is None else bring(part, dtype) for part, dtype in wanted))

    def _bring_all(self) -> Batch:
        try:
            brought = self._bring(self.stored)
            if self.backend.package != "numpy":
                return brought
            # Rows are taken from it: they had better lie together.
            return Batch(
                *(
                    part if part is None else read_only(np.ascontiguousarray(part))
                    for part in brought
                )
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceMemoryError(
                f"Loader: {self.backend} has no room for all {self.n_samples} samples; "
                "stream them, resident=False"
            ) from error

    def _fits(self) -> bool:
        """Return whether the data should be on the device all the time."""
        if isinstance(self.stored.x, np.memmap) or validation.is_sparse(self.stored.x):
            return False
        wanted = sum(
            math.prod(part.shape) * np.dtype(dtype or dtype_name(part)).itemsize
            for part, dtype in zip(self.stored, self._dtypes, strict=True)
            if part is not None
        )
        free = self.backend.free_bytes()
        return free is None or wanted <= _SHARE_OF_MEMORY * free

    def _transformed(self, batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
        """Apply the transform to each batch's features, on the device."""
        assert self.transform is not None  # noqa: S101
        with closing(batches):
            for batch in batches:
                x = batch.x
                if self.backend.package == "numpy" and not x.flags.writeable:
                    x = x.copy()
                result = self.transform(x)
                if backend_of(result) != self.backend or result.shape[:1] != batch.x.shape[:1]:
                    raise ShapeError(
                        f"Loader: transform must return an array on {self.backend} with "
                        f"{batch.x.shape[0]} rows, got {type(result).__name__} of shape "
                        f"{getattr(result, 'shape', None)}"
                    )
                yield batch._replace(x=result)

    def __repr__(self) -> str:
        """Return the sizes, and where the batches go."""
        return (
            f"Loader({self.n_samples} samples, batch_size={self.batch_size}, "
            f"backend={str(self.backend)!r}, {'resident' if self.resident else 'streamed'})"
        )


def _copies(batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    """Yield each batch as a copy."""
    with closing(batches):
        for batch in batches:
            yield Batch(*(part if part is None else copy_of(part) for part in batch))


def _target_dtype(y: Array, dtype: str | None) -> str | None:
    """Return what targets are converted to: labels to the integers that every device has."""
    if validation.is_floating(y):
        return dtype
    return None if dtype_name(y) == "bool" else "int64"


def _take(part: Any, rows: slice, order: Any) -> Any:
    """Return rows of an array, wherever it is."""
    if part is None:
        return None
    if validation.is_sparse(part):
        return part[rows if order is None else order[rows]].toarray()
    if isinstance(part, np.ndarray):
        part = np.asarray(part)  # a memmap looks every index up in Python
        return part[rows] if order is None else kernels(part).gather([part], order[rows])[0]
    place = backend_of(part)
    assert place is not None  # noqa: S101
    with place.scope():
        if order is None:
            return part[rows, ...]
        return kernels(part).gather([part], place.asarray(order[rows]))[0]


def blocked_permutation(rng: Any, n: int, block_size: int, window: int) -> Any:
    """Return a permutation of n rows: blocks shuffled, and rows within windows of blocks.

    Reading in this order touches `window` blocks at a time, wherever they are in a file.
    """
    blocks = rng.permutation(-(-n // block_size))
    order = np.concatenate([np.arange(b, min(b + block_size, n)) for b in blocks * block_size])
    for start in range(0, n, window * block_size):
        rng.shuffle(order[start : start + window * block_size])
    return order


def _choose_backend(backend: str | Backend | None, x: Any) -> Backend:
    home = backend_of(x)
    if backend is None and home is not None and home.package != "numpy":
        return home
    return get_backend(backend)
