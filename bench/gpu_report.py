"""The figures of the GPU's benchmark: as rows, lines of text, a table for the README, a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from timing import Spread, ratio, spread  # before NumPy: it sets the BLAS environment

# isort: split
from gpu_workloads import step_bytes, step_flops, streamed_bytes
from workloads import Workload

#: The baseline of all comparisons.
REFERENCE = "gpunn"
HEADER = (
    f"{'workload':21}{'':18}{'us a step':>29}{'times gpunn':>25}{'steps/s':>10}{'samples/s':>11}"
    f"{'TFLOP/s':>9}{'share':>7}{'GB/s':>8}{'share':>7}{'bus':>7}"
)


def rows_of(
    name: str, work: Workload, seconds: dict[str, list[float]], peak: dict[str, float]
) -> list[dict[str, Any]]:
    """Return a row for each contender.

    Ratios are of its time to gpunn's, taken within a round. Shares are of what the device was
    measured to do. Those of memory count every operation, so they may exceed 1 where caches serve.
    """
    rows = []
    for contender, own in seconds.items():
        step = spread(own)
        flops, moved, sent = (
            f(work) / step.median for f in (step_flops, step_bytes, streamed_bytes)
        )
        row = {
            "workload": name,
            "contender": contender,
            "products": work.products,
            "step_s": step._asdict(),
            "times_gpunn": ratio(own, seconds[REFERENCE])._asdict(),
            "steps_per_s": 1 / step.median,
            "samples_per_s": work.batch_size / step.median,
            "flop_per_s": flops,
            "bytes_per_s": moved,
        }
        if not contender.endswith("CPU"):
            row |= {"flop_share": flops / peak[work.products], "bytes_share": moved / peak["copy"]}
            row |= {"bus_share": sent / peak["bus"]} if sent else {}
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the lines of a workload."""
    for i, row in enumerate(rows):
        times = Spread(*(1e6 * t for t in row["step_s"].values()))
        shares = [f"{row[key]:.1%}" if key in row else "" for key in ("flop_share", "bytes_share")]
        bus = f"{row['bus_share']:.1%}" if "bus_share" in row else ""
        line = (
            f"{'' if i else row['workload']:21}{row['contender']:18}{times!s:>29}"
            f"{Spread(**row['times_gpunn'])!s:>25}"
            f"{row['steps_per_s']:>10.4g}{row['samples_per_s']:>11.4g}"
            f"{row['flop_per_s'] / 1e12:>9.3g}{shares[0]:>7}"
            f"{row['bytes_per_s'] / 1e9:>8.4g}{shares[1]:>7}{bus:>7}"
        )
        print(line.rstrip(), flush=True)


def markdown(found: dict[str, Any]) -> str:
    """Return the table for the README, a row for each workload, and what it was measured on."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for row in found["rows"]:
        rows.setdefault(row["workload"], {})[row["contender"]] = row
    columns = list(dict.fromkeys(row["contender"] for row in found["rows"]))
    others = [name for name in columns if name != REFERENCE]
    lines = [
        caption(found),
        "",
        "| " + " | ".join(["workload", f"{REFERENCE}, µs", "of the device's best", *others]) + " |",
        "| " + " | ".join(["---"] * (3 + len(others))) + " |",
    ]
    for name, entrants in rows.items():
        own = entrants[REFERENCE]
        best = min(entrants, key=lambda who: entrants[who]["step_s"]["median"])
        cells = [f"{1e6 * own['step_s']['median']:.4g}", _best_share(own)]
        cells[0] = f"**{cells[0]}**" if best == REFERENCE else cells[0]
        for other in others:
            cell = str(Spread(**entrants[other]["times_gpunn"])) if other in entrants else ""
            cells.append(f"**{cell}**" if other == best else cell)
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines) + "\n"


def caption(found: dict[str, Any]) -> str:
    """Return the sentences above the table."""
    on, peak = found["surroundings"], found["peak"]
    products = ", ".join(f"{peak[kind] / 1e12:.3g} in {kind}" for kind in _precisions(peak))
    major, minor = divmod(on["cuda"]["runtime"] // 10, 100)
    left_out = "; ".join(f"{', '.join(who)}: {why}" for why, who in _reasons(found).items())
    return (
        f"Time of a step on one {on['device']} (CUDA {major}.{minor}, CuPy {on['cupy']}; host: "
        f"{on['cores']} cores, {on['processor']}): the first column in microseconds, the "
        f"others as multiples of it, median [quartiles] of interleaved rounds. Above 1 is slower "
        f"than gpunn; the fastest of a row is bold. {'; '.join(found['versions'])}. Losses are "
        f"compared before any time is taken. Products are float32 without TF32 for all, but where "
        f"the row says tf32 or bfloat16. At its best, in the same run, the device makes products "
        f"at {products} TFLOP/s, a copy at {peak['copy'] / 1e9:.4g} GB/s (read and written), and "
        f"one from the host at {peak['bus'] / 1e9:.3g} GB/s."
        + (f" Left out: {left_out}." if left_out else "")
    )


def _reasons(found: dict[str, Any]) -> dict[str, list[str]]:
    """Return the contenders left out, by reason."""
    reasons: dict[str, list[str]] = {}
    for who, why in found["left_out"].items():
        reasons.setdefault(why, []).append(who)
    return reasons


def _precisions(peak: dict[str, float]) -> list[str]:
    return [name for name in peak if name not in ("copy", "bus")]


def _best_share(row: dict[str, Any]) -> str:
    """Return what a step comes nearest to: the device's products, its memory, or the bus."""
    kinds = {"flop_share": "products", "bytes_share": "memory", "bus_share": "bus"}
    key = "bus_share" if "bus_share" in row else max(("flop_share", "bytes_share"), key=row.get)
    return f"{row[key]:.0%} ({kinds[key]})"


def write_json(found: dict[str, Any], file: Path) -> None:
    """Write the figures as JSON."""
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def write(found: dict[str, Any], file: Path) -> None:
    """Write the figures as JSON, and beside them the table (.md) and the picture (.png)."""
    write_json(found, file)
    file.with_suffix(".md").write_text(markdown(found), encoding="utf-8")
    plot(found, file.with_suffix(".png"))


def plot(found: dict[str, Any], file: Path) -> None:
    """Draw a point for each contender and workload, if matplotlib is installed."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 (optional)
    except ImportError:
        print(f"{file.name} is not drawn: matplotlib is not installed")
        return
    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 (after the choice of its backend)

    rows = found["rows"]
    names = list(dict.fromkeys(row["workload"] for row in rows))[::-1]
    figure, axes = plt.subplots(figsize=(8, 1 + 0.5 * len(names)), layout="constrained")
    for contender in dict.fromkeys(row["contender"] for row in rows):
        own = [row for row in rows if row["contender"] == contender]
        times = [row["times_gpunn"]["median"] for row in own]
        marker = "D" if contender == REFERENCE else "o"
        axes.plot(times, [names.index(row["workload"]) for row in own], marker, label=contender)
    axes.set_yticks(range(len(names)), names)
    axes.set(xscale="log", xlabel="time of a step as a multiple of gpunn's; less is faster")
    axes.set(title=found["surroundings"]["device"])
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(file, dpi=110)
    plt.close(figure)
