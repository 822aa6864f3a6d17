"""Frames whose columns differ, and series."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunn as gn
from gpunn.errors import DataError, DTypeError
from tests.conftest import Place
from tests.samples import X


class TestPandas:
    """Frames whose columns differ, and series."""

    @pytest.fixture
    def pandas(self) -> Any:
        return pytest.importorskip("pandas")

    def columns(self, pandas: Any) -> dict[str, Any]:
        return {
            "float": pandas.Series([0.5, 1.5, 2.5]),
            "float32": pandas.Series([0.5, 1.5, 2.5], dtype="float32"),
            "bool": pandas.Series([True, False, True]),
            "int": pandas.Series([1, 2, 3]),
            "Int64": pandas.Series([1, 2, 3], dtype="Int64"),
            "UInt8": pandas.Series([1, 2, 3], dtype="UInt8"),
            "Float64": pandas.Series([0.5, 1.5, 2.5], dtype="Float64"),
            "boolean": pandas.Series([True, False, True], dtype="boolean"),
            "Sparse": pandas.Series([0.0, 1.0, 0.0], dtype="Sparse[float]"),
        }

    def test_columns_of_all_numeric_kinds(self, pandas: Any, place: Place, resident: bool) -> None:
        columns = self.columns(pandas)
        for first in columns:
            for second in columns:
                frame = pandas.DataFrame({"a": columns[first], "b": columns[second]})
                loader = gn.Loader(
                    frame, columns[first], shuffle=False, backend=place.backend, resident=resident
                )
                (batch,) = loader
                wanted = [[float(columns[kind][i]) for kind in (first, second)] for i in range(3)]
                assert gn.to_numpy(batch.x).tolist() == wanted
                assert gn.to_numpy(batch.x).dtype == "float32"
                assert gn.to_numpy(batch.y).tolist() == [row[0] for row in wanted]

    def test_kinds_stay_what_they_are(self, pandas: Any) -> None:
        columns = self.columns(pandas)
        for kind, wanted in {"Int64": "int64", "boolean": "bool", "Float64": "float64"}.items():
            for y in (columns[kind], pandas.array(columns[kind], dtype=kind)):
                assert gn.Loader(X[:3], y).targets.dtype == wanted

    @pytest.mark.parametrize("kind", ["Int64", "Float64", "boolean"])
    def test_gaps_are_refused_by_column(self, pandas: Any, kind: str) -> None:
        gap = pandas.Series([1, None, 0], dtype=kind)
        whole = pandas.Series([1.0, 2.0, 3.0])
        frame = pandas.DataFrame({"a": whole, "b": gap, ("c", 1): gap})
        with pytest.raises(DataError, match=r"x has missing values in 'b', \('c', 1\); drop or"):
            gn.Loader(frame)
        with pytest.raises(DataError, match="y has missing values in y; drop or impute"):
            gn.Loader(X[:3], gap)

    def test_columns_without_numbers_are_refused_by_name(self, pandas: Any) -> None:
        frame = pandas.DataFrame(
            {
                "a": [1.0, 2.0],
                "b": pandas.Series(["u", "v"], dtype="category"),
                "c": ["u", "v"],
                "d": pandas.to_datetime(["2020-01-01", "2020-01-02"]),
                "e": pandas.Series([1, "v"], dtype="object"),
            }
        )
        with pytest.raises(DTypeError) as caught:
            gn.Loader(frame)
        for part in ("real numbers, got 'b' (category), 'c' (", "'d' (datetime64", "'e' (object);"):
            assert part in str(caught.value)
        with pytest.raises(DTypeError, match=r"y must hold real numbers, got y \(category\)"):
            gn.Loader(X[:2], frame["b"])

    def test_a_frame_of_one_kind_is_not_copied(self, pandas: Any) -> None:
        frame = pandas.DataFrame(np.arange(6.0).reshape(3, 2))
        loader = gn.Loader(frame, dtype="float64", backend="numpy", resident=False)
        assert np.shares_memory(loader.stored.x, frame.to_numpy())

    def test_names_that_occur_twice(self, pandas: Any) -> None:
        frame = pandas.DataFrame([[1, 2.5], [3, 4.5]], columns=["a", "a"]).astype({"a": "Float64"})
        (batch,) = gn.Loader(frame, shuffle=False)
        assert batch.x.tolist() == [[1, 2.5], [3, 4.5]]
