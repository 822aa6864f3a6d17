"""Minibatches: arrays in, batches on a device out."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from typing import Any, Literal

import numpy as np

from gpunn._typing import RNG, Array
from gpunn.arrays.backend import Backend, backend_of, get_backend
from gpunn.arrays.checks import flag, float_dtype, one_of, whole_number
from gpunn.arrays.facts import size_of
from gpunn.arrays.settings import checked
from gpunn.arrays.streams import follow_default_stream
from gpunn.data import validation
from gpunn.data.batch import Batch, batch_dtypes, copies, gather, send, take
from gpunn.data.lending import is_lent
from gpunn.data.order import draw_order
from gpunn.data.resident import fits, make_resident
from gpunn.data.share import Sharing, as_share, draw_alike
from gpunn.data.state import Stateful
from gpunn.data.transformed import keeps_shape, transformed, transformed_group
from gpunn.errors import SettingError
from gpunn.nn.init import as_generator

__all__ = ["Batch", "Loader"]

#: Small batches are taken from the data together, up to this many bytes at a time.
_BYTES_AT_ONCE = 2 << 20


class Loader(Sharing, Stateful):
    """Shuffled minibatches of arrays, on a device.

    Iterating over a loader is one epoch. The order is drawn on the host, so one seed gives the same
    batches on every backend. A batch that is a view of the data (without shuffling, on NumPy) is
    read-only; any other batch is a copy and may be changed. On a GPU, an epoch begins after what
    the default stream has queued; read all of it on one stream.

    The attributes `batch_size`, `shuffle`, `block_size`, `window`, `drop_last` and `transform` may
    be set later. They are checked, and take effect at the next epoch.

    Parameters
    ----------
    x : array
        Features (N, ...): an array of NumPy, CuPy or any library with DLPack, a memmap, nested
        lists; a pandas DataFrame of numbers or booleans (nullable columns without gaps); or a
        sparse SciPy matrix, whose batches are made dense; or an array of Dask or Zarr, whose chunks
        are computed or read when rows of them are wanted (with shuffle="blocks", once an epoch).
    y : array, optional
        Targets (N, ...). Integers and booleans (class labels) are kept; floats become `dtype`.
    batch_size : int or None, default 32
        From 1 to N. None means all samples, and so does the default if there are fewer than 32.
    sample_weight : array, optional
        (N,), not negative, and finite as `dtype`.
    backend : str, Backend or None, default None
        Where the batches go. None: the GPU of `x`, if it is on one; else the backend set by
        `gpunn.use`; else NumPy.
    shuffle : bool, "blocks" or function, default True
        Whether each epoch has a new order. "blocks" is for data larger than memory: it shuffles
        blocks of consecutive rows, then the rows within each window of blocks. A function takes no
        arguments and returns the order of an epoch, N indices of samples.
    block_size : int, default 1024
        Rows per block, at least 1.
    window : int, default 16
        Blocks per window, at least 1.
    drop_last : bool, default False
        Whether to drop a last batch of fewer than `batch_size` samples.
    dtype : {"float32", "float64", None}, default "float32"
        The dtype of features, weights and floating-point targets, converted on the device. None
        keeps the dtypes as stored.
    keep_integers : bool, default False
        Whether `x` holds integers that stay integers, as int64: tokens, for a model that begins
        with `Embedding`. Otherwise they become `dtype`, as the pixels of an image do.
    transform : function, optional
        Applied to the `x` of each batch, on the device, after the conversion. It may write to its
        argument and return it. Steps are recorded if it has an attribute ``keeps_shape = True``,
        which says that it changes neither shape nor dtype; see `Augment`.
    resident : bool or "auto", default "auto"
        Whether the data are converted and moved to the device once, and batches are gathered
        there. Otherwise each batch is gathered on the host, sent as stored, and converted on the
        device. "auto" means True, unless `x` is a memmap, in chunks, sparse, or would take more
        than half of the free memory. Resident data may share memory with arrays that were in that
        library: do not change those while training. Other arrays have been read when the loader is
        made, also from pinned memory. Data that are streamed are read a batch ahead: do not change
        them until an epoch has ended.
    check_finite : bool, default False
        Whether to check the data for NaN, infinity, and numbers that overflow in `dtype`.
    rng : None, int or numpy.random.Generator, default None
        The seed of the order; None is another one each time.
    communicator : Communicator, optional
        Processes that share out the samples (`gpunn.DataParallel`): all draw one order, and each
        reads its part of every step, so `shuffle` is no function. n processes with a `batch_size`
        of b take the same samples in the same steps as one with n b. A last step with fewer samples
        is shared out, too; a process that gets none has a batch without rows.

    Attributes
    ----------
    backend : Backend
        Where the batches go.
    resident : bool
        Whether the data are on the device.
    stored : Batch
        The whole data set, where it is stored. Do not write to it.
    n_samples : int
        The number of samples, those of other processes among them.
    share : Share
        This process's part: its `rank` and the `size` of the group.

    Raises
    ------
    DataError
        If the data are empty, differ in length, or are not finite where that is checked.
    DTypeError
        If an array does not hold real numbers; or `x` no integers, for `keep_integers`.
    SettingError
        If `batch_size` or another setting is outside its interval.

    Examples
    --------
    >>> import numpy as np, gpunn as gn
    >>> loader = gn.Loader(np.zeros((10, 3)), np.zeros(10, dtype=int), batch_size=4, rng=0)
    >>> [batch.x.shape for batch in loader]
    [(4, 3), (4, 3), (2, 3)]

    A batch has three parts; the last is None without weights:

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
        keep_integers: bool = False,
        transform: Callable[[Array], Array] | None = None,
        resident: bool | Literal["auto"] = "auto",
        check_finite: bool = False,
        rng: RNG = None,
        communicator: Any = None,
    ) -> None:
        dtype = None if dtype is None else float_dtype("Loader", dtype, otherwise="None, ")
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
        follow_default_stream(backend_of(self.stored.x))
        #: The targets as given, so that checking them need not wait for a device.
        self.targets = self.stored.y
        self.n_samples = validation.check_lengths(self.stored._asdict())
        kept = flag("Loader", "keep_integers", keep_integers)
        #: The least and the largest of the integers in `x`, if they are kept and in memory.
        self.integers = validation.range_of(self.stored.x) if kept else None
        self._dtypes = batch_dtypes(self.stored, dtype, keep_integers=kept)
        validation.check_weight(self.stored.sample_weight, dtype)
        if flag("Loader", "check_finite", check_finite):
            validation.check_finite(self.stored._asdict(), self._dtypes)
        self.share = as_share(communicator, self.n_samples)
        self.stream = self.share.rank
        self.batch_size = batch_size
        self.dtype = dtype
        self.backend = _choose_backend(backend, self.stored.x)
        self._rng = as_generator(rng)
        if self.share.size > 1 and rng is None:
            draw_alike(communicator, self._rng)
        if resident is True and validation.is_sparse(self.stored.x):
            raise SettingError("Loader: sparse x cannot be resident; pass x.toarray()")
        if resident == "auto":
            resident = fits(self.stored, self.backend, self._dtypes)
        self.resident = resident
        if resident:
            with self.backend.scope():
                self.stored = make_resident(self.stored, self.backend, self._dtypes)
        held = (part for part in self.stored if part is not None)
        self._bytes_per_sample = max(1, sum(map(size_of, held)) // self.n_samples)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        whole, rest = divmod(self.n_samples, self.step_size)
        return whole + (1 if rest and not self.drop_last else 0)

    def __iter__(self) -> Generator[Batch, None, None]:
        """Yield the batches of one epoch, each with three parts: x, y, sample_weight."""
        order, n = self.own(self.draw_order(), self.n_turns)
        return self.padded(self._batches(order, n), len(self))

    def in_order(self) -> Generator[Batch, None, None]:
        """Yield all samples as batches in stored order, whatever the settings; draw no numbers."""
        return self._batches(None, self.n_samples)

    def first_row(self) -> Batch:
        """Return the first sample as a batch of one."""
        return next(self._batches(None, 1))

    @property
    def n_turns(self) -> int:
        """The number of samples in an epoch, of all processes together."""
        return min(self.n_samples, len(self) * self.step_size)

    def plain_row(self) -> Batch:
        """Return the first sample as a batch of one, without the transform."""
        return next(self._batches(None, 1, changed=False))

    @property
    def is_plain(self) -> bool:
        """Whether batches are rows of the data in shape and dtype: no subclass changes them.

        An epoch's batches are then the first `n_turns` rows in the order of `draw_order`, which a
        transform may change that keeps shape and dtype.
        """
        return type(self) is Loader and keeps_shape(self.transform)

    def rows(self) -> Batch | None:
        """Return the whole data set if it is on the device and needs no change, else None."""
        if type(self) is not Loader or self.transform is not None:
            return None
        if self.resident:
            return self.stored
        here = self.backend.package == "numpy" and all(
            part is None or _lies_as_wanted(part, dtype)
            for part, dtype in zip(self.stored, self._dtypes, strict=True)
        )
        return self.stored if here else None

    def batches(
        self, order: Any, stop: int, into: Batch | None = None
    ) -> Generator[Batch, None, None]:
        """Yield the batches of the first `stop` rows in an order; None is the stored order.

        Those that arrive from the host one by one are put `into` the first rows of these arrays, if
        they are given, and are views of them.
        """
        return self._batches(order, stop, into)

    def groups(self, order: Any, stop: int) -> Generator[Batch, None, None]:
        """Yield the first `stop` rows in an order, several whole batches at a time."""
        for rows in self._groups(min(stop, self.n_samples)):
            group = self._stream(rows, order)
            if self.transform is not None:
                size, place = self.batch_size, self.backend
                x = transformed_group(self.own_transform(), group.x, size, place)
                group = group._replace(x=x)
            yield group

    def _groups(self, stop: int) -> list[slice]:
        """Return the rows to fetch together: as many batches as `_BYTES_AT_ONCE` allows."""
        at_once = max(1, _BYTES_AT_ONCE // (self.batch_size * self._bytes_per_sample))
        size = at_once * self.batch_size
        return [slice(start, min(start + size, stop)) for start in range(0, stop, size)]

    def draw_order(self) -> Any:
        """Draw the order of one more epoch, on the host; None is the stored order."""
        if self.share.size > 1 and callable(self.shuffle):
            raise SettingError(
                "Loader: shuffle is a function, which may draw another order in each process; with "
                "a communicator say True, 'blocks' or False"
            )
        return draw_order(
            self._rng,
            self.n_samples,
            shuffle=self.shuffle,
            block_size=self.block_size,
            window=self.window,
        )

    def _stream(self, rows: slice, order: Any) -> Batch:
        """Take rows where the data are stored, send them as they are, convert them there."""
        return send(take(self.stored, rows, order), self.backend, self._dtypes)

    def _batches(
        self, order: Any, stop: int, into: Batch | None = None, *, changed: bool = True
    ) -> Generator[Batch, None, None]:
        """Yield batches of the first `stop` rows in an order; None is the stored order."""
        stop = min(stop, self.n_samples)
        starts = range(0, stop, self.batch_size)
        rows = [slice(start, min(start + self.batch_size, stop)) for start in starts]
        on_host = all(part is None or isinstance(part, np.ndarray) for part in self.stored)
        # Rows of NumPy arrays are read-only views; rows of sparse matrices are new arrays.
        guarded = on_host or (
            validation.is_sparse(self.stored.x) and self.backend.package == "numpy"
        )
        on_the_way = on_host and self.backend.package == "cupy" and not self.resident
        staged = on_the_way and len(rows) > 1  # one batch alone cannot be fetched ahead
        batches = self._staged(rows, order, into) if staged else self._fetched(rows, order)
        if order is None and not guarded and (self.transform is not None or not is_lent()):
            batches = copies(batches)
        if self.transform is not None and changed:
            batches = self._transformed(batches)
        return self._on_device(batches) if self.backend.package == "cupy" else batches

    def _on_device(self, batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
        """Make the backend's device current while a batch is made, and only then."""
        follow_default_stream(self.backend)
        scope = self.backend.scope()
        with closing(batches):
            while True:
                with scope:
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch

    def _fetched(self, rows: list[slice], order: Any) -> Generator[Batch, None, None]:
        """Fetch the rows of several small batches at a time, and yield views of them."""
        if self.resident and order is not None:
            order = self.backend.asarray(order)  # once an epoch
        fetch = partial(gather, self.stored) if self.resident else self._stream
        at_once = max(1, _BYTES_AT_ONCE // (self.batch_size * self._bytes_per_sample))
        within: list[Any] = []
        for i in range(0, len(rows), at_once):
            some = rows[i : i + at_once]
            first = some[0].start
            x, y, weight = taken = fetch(slice(first, some[-1].stop), order)
            if len(some) == 1:
                yield taken
                continue
            if i == 0 or i + at_once >= len(rows):  # only the last group may differ
                within = [(slice(own.start - first, own.stop - first), ...) for own in some]
            for own in within:
                yield Batch(
                    x[own],
                    None if y is None else y[own],
                    None if weight is None else weight[own],
                )

    def _staged(
        self, rows: list[slice], order: Any, into: Batch | None
    ) -> Generator[Batch, None, None]:
        """Gather and upload each batch while the one before it is computed on."""
        from gpunn.data.staging import convert, put, stage  # noqa: PLC0415 (imports CuPy)

        held = {name: part for name, part in self.stored._asdict().items() if part is not None}
        kept = zip(self.stored, self._dtypes, strict=True)
        dtypes = [dtype for part, dtype in kept if part is not None]
        chosen = rows if order is None else [order[some] for some in rows]
        read = convert(dtypes) if into is None else put([p for p in into if p is not None])
        with closing(stage(list(held.values()), chosen, self.batch_size, read)) as batches:
            for arrays in batches:
                yield Batch(**dict(zip(held, arrays, strict=True)))

    def _transformed(self, batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
        """Apply the transform to each batch's features, on the device."""
        transform = self.own_transform()
        with closing(batches):
            for batch in batches:
                x = batch.x
                if self.backend.package == "numpy" and not x.flags.writeable:
                    x = x.copy()
                yield batch._replace(x=transformed(transform, x, self.backend))

    def __repr__(self) -> str:
        """Return the sizes and the backend."""
        return (
            f"Loader({self.n_samples} samples, batch_size={self.batch_size}, "
            f"backend={str(self.backend)!r}, {'resident' if self.resident else 'streamed'})"
        )


def _lies_as_wanted(part: Any, dtype: str | None) -> bool:
    """Return whether rows of an array can be read where they are: in a dtype and in C's order."""
    if not isinstance(part, np.ndarray) or dtype not in (None, part.dtype.name):
        return False
    return part.dtype.isnative and part.flags.c_contiguous and part.flags.aligned


def _choose_backend(backend: str | Backend | None, x: Any) -> Backend:
    home = backend_of(x)
    if backend is None and home is not None and home.package != "numpy":
        return home
    return get_backend(backend)
