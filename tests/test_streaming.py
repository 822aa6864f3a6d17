"""Streaming: the batches are those of the resident loader, and nothing is read or written early."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpunn as gn
from gpunn.data.order import blocked_permutation
from tests.conftest import get_place
from tests.labels import label

try:
    import cudasim  # the emulator's counters and modes
except ImportError:
    cudasim = None

N = 70
rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (N, 5, 3), dtype=np.uint8)
LABELS = rng.integers(0, 4, N).astype(np.int16)
WEIGHTS = rng.uniform(0, 1, N)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Any:
    yield
    assert "gpunn-staging" not in [thread.name for thread in threading.enumerate()]


@pytest.fixture
def backend() -> gn.Backend:
    return get_place("cupy").backend


def loader(backend: Any, resident: bool = False, **settings: Any) -> gn.Loader:
    settings = {"batch_size": 16, "rng": 3, "sample_weight": WEIGHTS} | settings
    x = settings.pop("x", PIXELS)
    return gn.Loader(x, LABELS, backend=backend, resident=resident, **settings)


def bits(batches: Any) -> list[tuple[Any, ...]]:
    """Return the bytes of all batches, kept to the end: none may be written over meanwhile."""
    return [
        tuple((str(part.dtype), part.shape, gn.to_numpy(part).tobytes()) for part in batch)
        for batch in list(batches)
    ]


def modes() -> list[Any]:
    """Return the orders in which queued work may run: a real device has its own."""
    if cudasim is None:
        return [("device", 0)]
    return [("lazy", 0), ("eager", 0), *(("random", seed) for seed in range(20))]


def _named(mode: tuple[str, int]) -> str:
    return f"{mode[0]}-{mode[1]}"


@pytest.fixture(params=modes(), ids=_named)
def mode(request: pytest.FixtureRequest) -> Any:
    if cudasim is not None:
        cudasim.set_async(*request.param)
    yield request.param
    if cudasim is not None:
        cudasim.set_async("lazy", 0)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"shuffle": False},
    {"drop_last": True},
    {"shuffle": "blocks", "block_size": 8, "window": 2},
    {"batch_size": 1},
    {"batch_size": None},
    {"dtype": "float64", "transform": lambda x: x / 255},
]


@pytest.mark.gpu
@pytest.mark.usefixtures("mode")
class TestBatches:
    @pytest.mark.parametrize("settings", SETTINGS, ids=label)
    def test_are_those_of_the_resident_loader(self, backend: Any, settings: Any) -> None:
        streamed = loader(backend, **settings)
        resident = loader(backend, resident=True, **settings)
        for _ in range(2):
            assert bits(streamed) == bits(resident)
        assert bits(streamed.in_order()) == bits(resident.in_order())

    # The emulator keeps the stacks of a kernel's threads for each thread of the host that ran it,
    # and an epoch makes a thread: in all orders, those would be more than a process may have.
    @pytest.mark.parametrize("mode", modes()[:8], indirect=True, ids=_named)
    def test_train_to_the_same_losses(self, backend: Any) -> None:
        histories = []
        for resident in (False, True):
            model = gn.Sequential(
                gn.Flatten(), gn.Dense(15, 8, "relu", rng=0), gn.Dense(8, 4, rng=1)
            ).to(backend)
            optimizer = gn.SGD(model.parameters(), 0.01, momentum=0.9)
            trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), optimizer)
            data = loader(backend, resident, transform=lambda x: x / 255)
            histories.append(trainer.fit(data, epochs=2, validation=data).to_dict())
        for column in ("loss", "validation_loss"):
            assert histories[0][column] == histories[1][column]

    def test_on_a_stream_that_is_not_the_default(self, backend: Any) -> None:
        import cupy  # noqa: PLC0415

        with cupy.cuda.Stream(non_blocking=True) as stream:
            batches = list(loader(backend))
            stream.synchronize()
        assert bits(batches) == bits(loader(backend, resident=True))


@pytest.mark.gpu
@pytest.mark.two_devices
def test_on_another_device() -> None:
    there = get_place("cupy:1").backend
    batches = list(loader(there))
    assert {part.device.id for batch in batches for part in batch} == {1}
    assert bits(batches) == bits(loader(there, resident=True))


@pytest.mark.gpu
def test_a_memmap_larger_than_the_batch(backend: Any, tmp_path: Any) -> None:
    x = np.memmap(tmp_path / "x", dtype="uint8", mode="w+", shape=PIXELS.shape)
    x[:] = PIXELS
    streamed = loader(backend, x=x, resident="auto", shuffle="blocks", block_size=8)
    assert not streamed.resident
    assert bits(streamed) == bits(loader(backend, True, shuffle="blocks", block_size=8))


@pytest.mark.gpu
def test_two_iterations_at_once(backend: Any) -> None:
    one, two = iter(loader(backend)), iter(loader(backend))
    both = list(zip(one, two, strict=True))
    assert bits(a for a, _ in both) == bits(b for _, b in both)


@pytest.mark.gpu
@pytest.mark.parametrize("error", [OSError("the disk is gone"), KeyboardInterrupt()], ids=repr)
def test_what_goes_wrong_in_the_thread_is_raised_here(
    backend: Any, error: BaseException, monkeypatch: Any
) -> None:
    from gpunn.data import staging  # noqa: PLC0415

    fill = staging.Slot.fill

    def failing(self: Any, parts: Any, chosen: Any) -> None:
        if chosen.start >= 32:
            raise error
        fill(self, parts, chosen)

    monkeypatch.setattr(staging.Slot, "fill", failing)
    data, seen = loader(backend, shuffle=False), []
    with pytest.raises(type(error)):
        seen.extend(data)
    monkeypatch.undo()
    assert len(bits(data)) == 5  # and the loader can be read again


@pytest.mark.gpu
def test_leaving_early_ends_the_thread(backend: Any) -> None:
    data = loader(backend, batch_size=4)
    for _ in data:
        break
    batches = iter(data)
    next(batches)
    del batches
    with pytest.raises(ZeroDivisionError):
        list(loader(backend, batch_size=4, transform=lambda x: x / (1 // (len(x) - 2))))
    assert len(list(data)) == 18


@pytest.mark.gpu
@pytest.mark.emulated
def test_a_batch_crosses_the_bus_once_as_it_is_stored(backend: Any) -> None:
    data = loader(backend)
    with cudasim.count() as counted:
        list(data)
    assert counted["h2d_bytes"] == PIXELS.nbytes + LABELS.nbytes + WEIGHTS.nbytes
    assert counted["h2d_copies"] == 3 * len(data)
    assert counted["d2h_copies"] == 0


@pytest.mark.gpu
@pytest.mark.emulated
@pytest.mark.parametrize("forgotten", ["host", "copied", "consumed"])
def test_a_forgotten_wait_is_seen(backend: Any, forgotten: str, monkeypatch: Any) -> None:
    """Without any of the three waits the data are wrong: the tests above can see a race."""
    from gpunn.data import staging  # noqa: PLC0415

    if forgotten == "host":
        monkeypatch.setattr(staging.Slot, "wait_for_upload", lambda _: None)
    else:
        init = staging.Slot.__init__

        def without(self: Any, *arguments: Any, **settings: Any) -> None:
            init(self, *arguments, **settings)
            setattr(self, forgotten, NeverRecorded(getattr(self, forgotten)))

        monkeypatch.setattr(staging.Slot, "__init__", without)
    wanted = bits(loader(backend, resident=True, batch_size=2))
    wrong = 0
    for seed in range(20):
        cudasim.set_async("random", seed)
        wrong += bits(loader(backend, batch_size=2)) != wanted
    cudasim.set_async("lazy", 0)
    assert wrong


class NeverRecorded:
    """An event that nobody waits for, as it is recorded on no stream."""

    def __init__(self, event: Any) -> None:
        self.event = event
        self.ptr = event.ptr

    def record(self, stream: Any = None) -> None:
        """Do nothing."""

    def synchronize(self) -> None:
        """Wait for nothing."""


class TestBlocks:
    @given(
        n=st.integers(1, 200),
        block_size=st.integers(1, 50),
        window=st.integers(1, 6),
        seed=st.integers(0, 5),
    )
    def test_every_row_comes_once_from_few_blocks(
        self, n: int, block_size: int, window: int, seed: int
    ) -> None:
        order = blocked_permutation(np.random.default_rng(seed), n, block_size, window)
        assert sorted(order.tolist()) == list(range(n))
        for start in range(0, n, window * block_size):
            rows = order[start : start + window * block_size]
            # A last block that is short shifts what follows by less than a block.
            assert len(set((rows // block_size).tolist())) <= window + 1

    def test_it_mixes(self) -> None:
        order = blocked_permutation(np.random.default_rng(0), 1000, 10, 5)
        neighbours = np.abs(np.diff(order)) == 1
        assert neighbours.mean() < 0.1
        assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.3

    def test_one_seed_gives_one_order(self) -> None:
        settings = {"shuffle": "blocks", "block_size": 4, "window": 3, "batch_size": 7, "rng": 1}
        x = np.arange(50.0)[:, None]
        resident, streamed = (
            np.concatenate([batch.x for batch in gn.Loader(x, resident=where, **settings)])
            for where in (True, False)
        )
        np.testing.assert_array_equal(resident, streamed)
        assert sorted(resident[:, 0].tolist()) == list(range(50))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (
                {"shuffle": "block"},
                "shuffle must be a function or one of True, False, 'blocks'; got 'block'",
            ),
            ({"block_size": 0}, "block_size must be a whole number above 0, got 0"),
            ({"window": 1.5}, "window must be a whole number above 0, got 1.5"),
        ],
    )
    def test_settings_out_of_range(self, settings: Any, message: str) -> None:
        with pytest.raises(gn.errors.SettingError, match=message):
            gn.Loader(np.zeros((4, 1)), batch_size=2, **settings)
