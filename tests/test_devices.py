"""Two devices, streams, and arrays of other libraries that are on a GPU already."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

import gpunn as gn
from gpunn import kernels as kernels_module
from tests.conftest import OnlyDLPack, get_place

pytestmark = pytest.mark.gpu
cupy: Any = None
cupyx: Any = None


@pytest.fixture(autouse=True)
def _cupy() -> None:
    global cupy, cupyx
    get_place("cupy")  # or skip
    cupy, cupyx = pytest.importorskip("cupy"), pytest.importorskip("cupyx")


def data(n: int = 96) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 8)).astype("float32")
    return x, (x[:, 0] + x[:, 1] > 0).astype(int)


def trained(home: str, x: Any, y: Any, **settings: Any) -> tuple[gn.Trainer, gn.History]:
    """Train a small network there; return its trainer and its history."""
    rng = np.random.default_rng(1)
    model = gn.Sequential(
        gn.Dense(8, 16, "gelu", rng=rng), gn.Dropout(0.2), gn.Dense(16, 2, rng=rng)
    ).to(home)
    optimizer = gn.SGD(model.parameters(), 0.1, momentum=0.9, clip_norm=1.0, weight_decay=1e-3)
    trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), optimizer, metrics=["accuracy"], rng=2)
    loader = gn.Loader(x, y, batch_size=32, rng=rng, **settings)
    return trainer, trainer.fit(loader, epochs=3, validation=(x, y))


@pytest.mark.two_devices
@pytest.mark.parametrize("resident", [True, False])
def test_all_that_training_makes_is_on_the_device_that_was_asked_for(resident: bool) -> None:
    x, y = data()
    there, history = trained("cupy:1", x, y, backend="cupy:1", resident=resident)
    _, reference = trained("cupy:0", x, y, backend="cupy:0", resident=resident)
    assert cupy.cuda.Device().id == 0
    assert history["validation_loss"] == reference["validation_loss"]
    assert all(p.value.device.id == 1 for p in there.model.parameters())
    probabilities = there.predict_proba(x)
    assert probabilities.device.id == 1
    np.testing.assert_allclose(gn.to_numpy(probabilities).sum(axis=1), 1.0, rtol=1e-6)


@pytest.mark.two_devices
def test_a_step_by_hand_needs_no_current_device() -> None:
    backend = gn.get_backend("cupy:1")
    model = gn.Dense(8, 2, "tanh", rng=0, backend=backend)
    optimizer, loss = gn.SGD(model.parameters(), 0.1, momentum=0.9), gn.MeanSquaredError()
    x, y = backend.asarray(np.ones((4, 8), "f4")), backend.asarray(np.ones((4, 2), "f4"))
    cost, prediction = gn.train_step(model, loss, optimizer, x, y)
    assert {cost.device.id, prediction.device.id, model.weight.value.device.id} == {1}
    tape = gn.Tape()
    assert loss(model(x, tape), y, tape).device.id == 1


@pytest.mark.two_devices
def test_backward_by_hand_needs_no_current_device() -> None:
    """A launch or a product on another device would read memory that it cannot reach."""
    grads = []
    for name in ("cupy:0", "cupy:1"):
        backend, tape = gn.get_backend(name), gn.Tape()
        model = gn.Dense(8, 2, "tanh", rng=0, backend=backend)
        y = model(backend.asarray(np.ones((4, 8), "f4")), tape)
        model.backward(y, tape)
        grads.append(gn.to_numpy(model.weight.grad))
    np.testing.assert_array_equal(*grads)


@pytest.mark.two_devices
def test_devices_do_not_mix() -> None:
    x, y = data()
    model = gn.Dense(8, 2, rng=0, backend="cupy:1")
    with pytest.raises(gn.errors.DeviceError, match=r"is on cupy:1 and x on cupy:0"):
        model(gn.get_backend("cupy:0").asarray(x))
    trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), gn.SGD(model.parameters(), 0.1))
    with pytest.raises(gn.errors.DeviceError, match=r"is on cupy:1 and the loader's .* cupy:0"):
        trainer.fit(gn.Loader(x, y, backend="cupy:0"), epochs=1)
    model.to("cupy:0")
    with pytest.raises(gn.errors.DeviceError, match="build the optimizer after"):
        trainer.fit(gn.Loader(x, y, backend="cupy:0"), epochs=1)


@pytest.mark.two_devices
def test_a_move_between_devices_keeps_every_bit() -> None:
    model = gn.Dense(5, 7, rng=0)
    before = model.weight.value.copy()
    for name in ("cupy:0", "cupy:1", "cupy:0", "numpy"):
        model.to(name)
        assert str(model.backend) == name
        assert gn.to_numpy(model.weight.value).tobytes() == before.tobytes()


@pytest.mark.parametrize("resident", [True, False])
def test_a_stream_that_is_not_the_default_is_respected(resident: bool) -> None:
    x, y = data()
    _, reference = trained("cupy", x, y, backend="cupy", resident=resident)
    with cupy.cuda.Stream(non_blocking=True):
        _, history = trained("cupy", x, y, backend="cupy", resident=resident)
    assert history["validation_loss"] == reference["validation_loss"]


class Interface:
    """An array of some library that offers its memory by `__cuda_array_interface__` alone."""

    def __init__(self, x: Any) -> None:
        self.x = x

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.x.__cuda_array_interface__


@pytest.mark.parametrize("wrap", [Interface, OnlyDLPack])
def test_arrays_on_a_gpu_are_taken_as_they_are(wrap: Any) -> None:
    x, y = (cupy.asarray(part) for part in data())
    loader = gn.Loader(wrap(x), wrap(y), shuffle=False, batch_size=None)
    assert str(loader.backend) == "cupy:0"
    assert loader.stored.x.data.ptr == x.data.ptr  # not by way of the host, and not even a copy
    trainer, history = trained("cupy", wrap(x), wrap(y))
    _, reference = trained("cupy", *data(), backend="cupy")
    assert history["validation_loss"] == reference["validation_loss"]
    np.testing.assert_array_equal(gn.to_numpy(wrap(x)), gn.to_numpy(x))
    outputs = trainer.predict(wrap(x))
    assert cupy.from_dlpack(outputs).data.ptr == outputs.data.ptr


@pytest.mark.two_devices
def test_arrays_on_another_gpu_are_taken_there() -> None:
    with cupy.cuda.Device(1):
        x = cupy.arange(6.0).reshape(3, 2)
    assert gn.Loader(Interface(x), batch_size=1).backend == gn.get_backend("cupy:1")
    assert gn.Loader(OnlyDLPack(x), batch_size=1).backend == gn.get_backend("cupy:1")
    assert gn.get_backend("cupy:0").asarray(Interface(x)).device.id == 0


@pytest.fixture
def rocm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if CuPy were for ROCm: no source of ours may be compiled, and no kernel of CUDA's used."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a kernel of CUDA's was asked for")

    monkeypatch.setattr(kernels_module, "on_rocm", lambda: True)
    monkeypatch.setattr(kernels_module, "_BY_TYPE", {})
    for name in ("RawKernel", "RawModule"):
        monkeypatch.setattr(cupy, name, refuse)
    monkeypatch.setitem(sys.modules, "gpunn.kernels.cupy_", None)  # type: ignore[arg-type]


@pytest.mark.usefixtures("rocm")
class TestRocm:
    @pytest.mark.parametrize("resident", [True, False])
    def test_the_readable_loop_trains_there(self, resident: bool) -> None:
        x, y = data()
        there, history = trained("cupy", x, y, backend="cupy", resident=resident)
        here, reference = trained("numpy", x, y, backend="numpy")
        np.testing.assert_allclose(
            history["validation_loss"], reference["validation_loss"], rtol=1e-4
        )
        outputs = gn.to_numpy(there.predict_proba(cupy.asarray(x)))
        np.testing.assert_allclose(outputs, here.predict_proba(x), rtol=1e-3, atol=1e-5)

    @pytest.mark.two_devices
    def test_a_step_by_hand_needs_no_current_device(self) -> None:
        test_a_step_by_hand_needs_no_current_device()
        test_backward_by_hand_needs_no_current_device()


class Late:
    """An array of a library that works on a stream of its own, and has not finished."""

    def __init__(self) -> None:
        self.stream = cupy.cuda.Stream(non_blocking=True)
        x = cupy.zeros((3, 2))
        cupy.cuda.Device().synchronize()
        with self.stream:
            x += cupy.arange(6.0).reshape(3, 2)
        self.x = x


class LateByDLPack(Late):
    def __dlpack__(self, **settings: Any) -> Any:
        with self.stream:
            return self.x.__dlpack__(**settings)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.x.__dlpack_device__()


class LateByInterface(Late):
    """As of version 3 it names its stream."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.x.__cuda_array_interface__, "version": 3, "stream": self.stream.ptr}


class LateByOldInterface(Late):
    """Up to version 2 nobody says what to wait for."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        entries = self.x.__cuda_array_interface__
        return {name: entries[name] for name in entries if name != "stream"} | {"version": 2}


class LateByBoth(LateByDLPack):
    """As torch's tensors: the interface says less than DLPack."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.x.__cuda_array_interface__, "version": 2, "stream": None}


def to_the_other(x: Any) -> Any:
    return gn.get_backend("cupy:1").asarray(x)


LATE = [LateByDLPack, LateByInterface, LateByOldInterface, LateByBoth]


@pytest.mark.parametrize("producer", LATE)
@pytest.mark.parametrize("own_stream", [False, True])
@pytest.mark.parametrize(
    "read",
    [
        gn.to_numpy,
        lambda x: gn.get_backend("cupy").asarray(x).get(),
        lambda x: gn.Loader(x, shuffle=False, batch_size=None).stored.x.get(),
        lambda x: gn.get_backend("cupy").asarray(x, "float32").get(),
        pytest.param(
            lambda x: gn.to_numpy(gn.get_backend("cupy:1").asarray(x)),
            marks=pytest.mark.two_devices,
        ),
    ],
)
def test_a_late_producer_is_waited_for(producer: Any, own_stream: bool, read: Any) -> None:
    with cupy.cuda.Stream(non_blocking=True) if own_stream else cupy.cuda.Stream.null:
        np.testing.assert_array_equal(read(producer()), np.arange(6.0).reshape(3, 2))


@pytest.mark.two_devices
def test_what_is_on_another_gpu_is_copied_once_it_is_ready() -> None:
    with (
        cupy.cuda.Device(1),
        cupy.cuda.Stream(non_blocking=True),
        cupy.cuda.Device(0),
        cupy.cuda.Stream(non_blocking=True),
    ):
        x = cupy.ones(4) * 3
        assert gn.to_numpy(gn.get_backend("cupy:1").asarray(x)).tolist() == [3] * 4


class OfHostMemory:
    """Memory of a GPU's library that the host can read, written to by a stream that is late."""

    def __init__(self, kind: int) -> None:
        memory = cupy.cuda.malloc_managed(24) if kind == 13 else None
        self.kind = kind
        self.stream = cupy.cuda.Stream(non_blocking=True)
        if memory is not None:
            self.shown = self.x = cupy.ndarray(3, "float64", memory)
        else:
            self.x, self.shown = cupy.zeros(3), cupyx.zeros_pinned(3)
        cupy.cuda.Device().synchronize()
        with self.stream:
            self.x += cupy.arange(3.0)
            if memory is None:
                self.x.get(out=self.shown, blocking=False)

    def __dlpack__(self, **settings: Any) -> Any:
        if self.kind == 3:
            settings = {name: settings[name] for name in settings if name != "stream"}
        with self.stream:
            return self.shown.__dlpack__(**settings)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, 0


@pytest.mark.parametrize("kind", [3, 13], ids=["pinned", "managed"])
@pytest.mark.parametrize("home", ["numpy", "cupy"])
def test_memory_that_the_host_can_read_is_waited_for(kind: int, home: str) -> None:
    backend = gn.get_backend(home)
    assert gn.to_numpy(OfHostMemory(kind)).tolist() == [0, 1, 2]
    assert gn.to_numpy(backend.asarray(OfHostMemory(kind))).tolist() == [0, 1, 2]
    loader = gn.Loader(OfHostMemory(kind), backend=home, shuffle=False, batch_size=None)
    assert gn.to_numpy(next(iter(loader)).x).tolist() == [0, 1, 2]


def test_managed_memory_is_on_a_gpu() -> None:
    loader = gn.Loader(OfHostMemory(13), batch_size=1)
    assert str(loader.backend) == "cupy:0"
    assert gn.backend_of(loader.stored.x) == loader.backend


def of_a_subclass(x: Any) -> Any:
    """Return an array of a class that is derived from CuPy's."""

    class Measured(cupy.ndarray):
        pass

    return cupy.asarray(x).view(Measured)


def test_subclasses_are_taken_as_plain_arrays() -> None:
    x, y = data()
    given = of_a_subclass(x), of_a_subclass(y)
    trainer, history = trained("cupy", *given)
    _, reference = trained("cupy", x, y, backend="cupy")
    assert history["validation_loss"] == reference["validation_loss"]
    assert str(gn.backend_of(given[0])) == "cupy:0"
    np.testing.assert_array_equal(gn.to_numpy(given[0]), x)
    there = gn.get_backend("cupy").asarray(given[0])
    assert type(there) is cupy.ndarray
    assert there.data.ptr == given[0].data.ptr
    assert type(trainer.predict(given[0])) is cupy.ndarray


def test_subclasses_run_through_layers_and_losses() -> None:
    x, y = data(8)
    model = gn.Dense(8, 2, "tanh", rng=0, backend="cupy")
    plain = gn.SoftmaxCrossEntropy()(model(cupy.asarray(x)), cupy.asarray(y))
    cost = gn.SoftmaxCrossEntropy()(model(of_a_subclass(x)), of_a_subclass(y))
    assert float(cost) == float(plain)
    optimizer = gn.SGD(model.parameters(), 0.1)
    cost, _ = gn.train_step(
        model, gn.SoftmaxCrossEntropy(), optimizer, of_a_subclass(x), of_a_subclass(y)
    )
    assert float(cost) == float(plain)
