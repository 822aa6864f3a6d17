"""Layers for sequences against PyTorch's, on random shapes and settings."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpunn as gn

CLOSE = {"float32": 1e-5, "float64": 1e-10}
#: The fixture `torch` is the same module for all examples.
ORACLE = settings(
    max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
SEEDS = st.integers(0, 2**31)


def assert_near(got: Any, want: Any, dtype: str) -> None:
    """Compare relative to the largest entry: sums are added up in another order."""
    want = want.detach().numpy()
    assert got.dtype == want.dtype == dtype
    atol = CLOSE[dtype] * max(1.0, float(np.abs(want).max(initial=0.0)))
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def attention_pair(
    torch: Any, features: int, heads: int, dtype: str, seed: int, *, causal: bool, bias: bool
) -> tuple[gn.MultiHeadAttention, Any]:
    """Return the two layers, with the same weights."""
    rng = np.random.default_rng(seed)
    ours = gn.MultiHeadAttention(features, heads, causal=causal, bias=bias, rng=rng, dtype=dtype)
    theirs = torch.nn.MultiheadAttention(
        features, heads, bias=bias, batch_first=True, dtype=getattr(torch, dtype)
    )
    pairs = [(theirs.in_proj_weight, ours.projection), (theirs.out_proj.weight, ours.output)]
    biases = [(theirs.in_proj_bias, ours.projection), (theirs.out_proj.bias, ours.output)]
    with torch.no_grad():
        for weight, dense in pairs:
            weight.copy_(torch.from_numpy(dense.weight.value.T.copy()))
        for vector, dense in biases if bias else []:
            dense.bias.value[:] = rng.standard_normal(dense.bias.value.shape)
            vector.copy_(torch.from_numpy(dense.bias.value))
    return ours, theirs


@given(
    n=st.integers(1, 4),
    t=st.integers(1, 70),
    heads=st.integers(1, 4),
    d=st.integers(1, 9),
    causal=st.booleans(),
    bias=st.booleans(),
    masked=st.sampled_from(["", "keys", "queries and keys"]),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=SEEDS,
)
@ORACLE
def test_attention(torch: Any, **drawn: Any) -> None:
    n, t, heads, dtype, seed = (drawn[name] for name in ("n", "t", "heads", "dtype", "seed"))
    c = heads * drawn["d"]
    ours, theirs = attention_pair(
        torch, c, heads, dtype, seed, causal=drawn["causal"], bias=drawn["bias"]
    )
    rng = np.random.default_rng(seed)
    x, grad = (rng.standard_normal((n, t, c)).astype(dtype) for _ in range(2))
    mask, allowed = None, np.ones((n, t, t), bool)
    if drawn["masked"]:
        mask = rng.random((n, t) if drawn["masked"] == "keys" else (n, t, t)) < 0.7
        # PyTorch's rows that see nothing are NaN.
        if mask.ndim == 2:
            mask[:, 0] = True
        else:
            mask |= np.eye(t, dtype=bool)
        allowed &= mask[:, None, :] if mask.ndim == 2 else mask
    if drawn["causal"]:
        allowed &= np.tri(t, dtype=bool)
    tape = gn.Tape()
    y = ours(x, tape, mask=mask)
    grad_x = ours.backward(grad, tape)
    given_x = torch.from_numpy(x).requires_grad_()
    forbidden = torch.from_numpy(~allowed.repeat(heads, axis=0))
    want, _ = theirs(given_x, given_x, given_x, attn_mask=forbidden, need_weights=False)
    want.backward(torch.from_numpy(grad))
    assert_near(y, want, dtype)
    assert_near(grad_x, given_x.grad, dtype)
    assert_near(ours.projection.weight.grad.T, theirs.in_proj_weight.grad, dtype)
    assert_near(ours.output.weight.grad.T, theirs.out_proj.weight.grad, dtype)
    if drawn["bias"]:
        assert_near(ours.projection.bias.grad, theirs.in_proj_bias.grad, dtype)
        assert_near(ours.output.bias.grad, theirs.out_proj.bias.grad, dtype)


@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple),
    tokens=st.integers(1, 40),
    features=st.integers(1, 9),
    dtype=st.sampled_from(["float32", "float64"]),
    kind=st.sampled_from(["int64", "int32", "uint8"]),
    seed=SEEDS,
)
@ORACLE
def test_embedding(torch: Any, **drawn: Any) -> None:
    dtype, seed = drawn["dtype"], drawn["seed"]
    rng = np.random.default_rng(seed)
    ours = gn.Embedding(drawn["tokens"], drawn["features"], rng=rng, dtype=dtype)
    theirs = torch.nn.Embedding.from_pretrained(
        torch.from_numpy(ours.weight.value.copy()), freeze=False
    )
    x = rng.integers(0, drawn["tokens"], drawn["shape"]).astype(drawn["kind"])
    tape = gn.Tape()
    y, want = ours(x, tape), theirs(torch.from_numpy(x.astype("int64")))
    grad = rng.standard_normal(y.shape).astype(dtype)
    ours.backward(grad, tape)
    want.backward(torch.from_numpy(grad))
    assert_near(y, want, dtype)
    assert_near(ours.weight.grad, theirs.weight.grad, dtype)


@given(
    leading=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=SEEDS,
)
@ORACLE
def test_dense_on_sequences(torch: Any, **drawn: Any) -> None:
    dtype, rng = drawn["dtype"], np.random.default_rng(drawn["seed"])
    ours = gn.Dense(drawn["inputs"], drawn["outputs"], "tanh", rng=rng, dtype=dtype)
    weight = torch.from_numpy(ours.weight.value.copy()).requires_grad_()
    bias = torch.from_numpy(ours.bias.value.copy()).requires_grad_()
    x = rng.standard_normal((*drawn["leading"], drawn["inputs"])).astype(dtype)
    if x.ndim == 1:
        x = x[None]
    given_x = torch.from_numpy(x).requires_grad_()
    tape = gn.Tape()
    y, want = ours(x, tape), torch.tanh(given_x @ weight + bias)
    grad = rng.standard_normal(y.shape).astype(dtype)
    grad_x = ours.backward(grad, tape)
    want.backward(torch.from_numpy(grad))
    pairs = [(y, want), (grad_x, given_x.grad)]
    pairs += [(ours.weight.grad, weight.grad), (ours.bias.grad, bias.grad)]
    for got, wanted in pairs:
        assert_near(got, wanted, dtype)


def test_a_block_follows_pytorch_for_200_steps(torch: Any) -> None:
    """Train a block with norms before each half of it, by SGD with momentum."""
    c, inner, t, n = 16, 32, 8, 64
    rng = np.random.default_rng(0)
    attention = gn.MultiHeadAttention(c, 2, rng=rng)
    first, second = gn.Dense(c, inner, "relu", rng=rng), gn.Dense(inner, c, rng=rng)
    head = gn.Dense(t * c, 3, rng=rng)
    ours = gn.Sequential(
        gn.Residual(gn.Sequential(gn.LayerNorm(c), attention)),
        gn.Residual(gn.Sequential(gn.LayerNorm(c), first, second)),
        gn.Flatten(),
        head,
    )
    block = torch.nn.TransformerEncoderLayer(
        c, 2, inner, dropout=0.0, batch_first=True, norm_first=True
    )
    theirs = torch.nn.Sequential(block, torch.nn.Flatten(), torch.nn.Linear(t * c, 3))
    pairs = [
        (block.self_attn.in_proj_weight, block.self_attn.in_proj_bias, attention.projection),
        (block.self_attn.out_proj.weight, block.self_attn.out_proj.bias, attention.output),
        (block.linear1.weight, block.linear1.bias, first),
        (block.linear2.weight, block.linear2.bias, second),
        (theirs[2].weight, theirs[2].bias, head),
    ]
    with torch.no_grad():
        for weight, bias, dense in pairs:
            weight.copy_(torch.from_numpy(dense.weight.value.T.copy()))
            bias.zero_()
    x = rng.standard_normal((n, t, c), dtype=np.float32)
    y = x.sum(axis=(1, 2)).argsort().argsort() * 3 // n
    optimizer = gn.SGD(ours.parameters(), 0.01, momentum=0.9)
    trainer = gn.Trainer(ours, gn.SoftmaxCrossEntropy(), optimizer)
    losses = trainer.fit(gn.Loader(x, y, batch_size=None, shuffle=False), 200, progress=False)
    descent, cross_entropy = (
        torch.optim.SGD(theirs.parameters(), 0.01, momentum=0.9),
        torch.nn.CrossEntropyLoss(),
    )
    given, labels, wanted = torch.from_numpy(x), torch.from_numpy(y), []
    for _ in range(200):
        descent.zero_grad()
        cost = cross_entropy(theirs(given), labels)
        cost.backward()
        descent.step()
        wanted.append(cost.item())
    assert wanted[-1] < 0.1 * wanted[0]
    np.testing.assert_allclose(losses["loss"], wanted, rtol=0, atol=1e-4)
