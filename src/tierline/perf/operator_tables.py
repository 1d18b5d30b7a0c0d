"""Measured times of operators, as aiconfigurator publishes them: one Parquet file an operator and device.

Source: https://github.com/ai-dynamo/aiconfigurator, `src/aiconfigurator/systems/data/<device>/vllm/<version>/`, Apache-2.0.
bf16 throughout. Between measured sizes times are interpolated in straight lines, beyond them continued in proportion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tierline.core.errors import InvalidInput, MissingExtra

Times = NDArray[np.float64]
GENERATION_KV_HEADS = 8  # the most that generation attention was measured with


@dataclass(frozen=True, slots=True)
class OperatorTables:
    """Seconds of one device. `gemm[m, n, k]`; attention by (heads, KV heads, head_dim) and by (heads, head_dim): arrays
    [batch, length]; NaN where nothing was measured. A context attention of `length` new tokens has none cached."""

    ms: NDArray[np.int64]
    ns: NDArray[np.int64]
    ks: NDArray[np.int64]
    gemm: Times
    context_lengths: NDArray[np.int64]
    context: dict[tuple[int, int, int], Times]
    generation_batches: NDArray[np.int64]
    generation_lengths: NDArray[np.int64]
    generation: dict[tuple[int, int, int], Times]
    encoder_batches: NDArray[np.int64]
    encoder_lengths: NDArray[np.int64]
    encoder: dict[tuple[int, int], Times]

    def gemm_s(self, n: int, k: int) -> Times:
        """[ms] seconds of [m, k] x [k, n] for each measured m, bilinear in n and k."""
        return _between(self.ns, n, lambda i: _between(self.ks, k, lambda j: self._measured(i, j)))

    def _measured(self, n_place: int, k_place: int) -> Times:
        found: Times = self.gemm[:, n_place, k_place]
        return found

    def context_s(self, heads: int, kv_heads: int, head_dim: int) -> Times:
        """[lengths] seconds of one layer over one sequence."""
        batches = self._heads(self.context, heads, kv_heads, head_dim)
        alone: Times = batches[0]
        return alone

    def generation_s(self, heads: int, kv_heads: int, head_dim: int) -> Times:
        """[batches, lengths] seconds of one layer. More KV heads than were measured are taken as more sequences with
        fewer, which is the same work."""
        times = kv_heads / GENERATION_KV_HEADS
        if times <= 1:
            return self._heads(self.generation, heads, kv_heads, head_dim)
        table = self._heads(self.generation, round(heads / times), GENERATION_KV_HEADS, head_dim)
        batches = self.generation_batches
        return np.array([_between(batches, batch * times, lambda i: table[i]) for batch in batches.tolist()])

    def encoder_s(self, heads: int, head_dim: int) -> Times:
        """[batches, lengths] seconds of one layer, no mask. Raises `InvalidInput` where the device has none."""
        if not self.encoder:
            raise InvalidInput("these tables hold no encoder attention, so images cannot be predicted from them.")
        nearest = _nearest({key[1] for key in self.encoder}, head_dim)
        known = sorted(key[0] for key in self.encoder if key[1] == nearest)
        found = _between(np.array(known), heads, lambda i: self.encoder[known[i], nearest])
        return found * max(1.0, head_dim / nearest)

    def _heads(self, table: dict[tuple[int, int, int], Times], heads: int, kv_heads: int, head_dim: int) -> Times:
        nearest = _nearest({key[2] for key in table}, head_dim)
        shapes = [(key[0], key[1]) for key in table if key[2] == nearest]

        def by_heads(kv: int) -> Times:
            known = sorted(each for each, kv_of in shapes if kv_of == kv)
            return _between(np.array(known), heads, lambda i: table[known[i], kv, nearest])

        # KV heads with measurements on both sides of `heads`, so that nothing has to be continued if it need not be.
        kvs = sorted({kv for _, kv in shapes})
        usable = [kv for kv in kvs if max(h for h, other in shapes if other == kv) >= heads] or kvs
        if kv_heads == heads and (heads, heads, nearest) in table:
            found = table[heads, heads, nearest]
        else:
            found = _between(np.array(usable), kv_heads, lambda i: by_heads(usable[i]))
        return found * max(1.0, head_dim / nearest)


def read_tables(folder: Path) -> OperatorTables:
    """The tables of one device in `folder`. Raises `InvalidInput` where they are not there or are others, `MissingExtra`
    without pyarrow."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtra("reading operator tables", "tables") from error

    def read(operator: str, columns: Sequence[str], **wanted: object) -> dict[str, NDArray[Any]]:
        path = folder / f"{operator}_perf.parquet"
        if not path.is_file():
            raise InvalidInput(
                f"{path}: there is no such table; a folder of aiconfigurator's (h100_sxm with gemm_perf.parquet) is needed."
            )
        try:
            table = parquet.read_table(path)
            found = {name: table[name].to_numpy(zero_copy_only=False) for name in (*columns, "latency")}
            keep = np.ones(table.num_rows, dtype=bool)
            for name, value in wanted.items():
                if name in table.column_names:  # older tables lack columns of what they do not vary
                    keep &= table[name].to_numpy(zero_copy_only=False) == value
        except (OSError, KeyError, ValueError) as error:
            raise InvalidInput(f"{path} is no table of aiconfigurator's ({error}).") from error
        found = {name: column[keep] for name, column in found.items()}
        found["latency"] = found["latency"] / 1e3
        return found

    gemm = read("gemm", ("m", "n", "k"), gemm_dtype="bfloat16")
    ms, ns, ks = (np.unique(gemm[name]) for name in ("m", "n", "k"))
    times = np.full((len(ms), len(ns), len(ks)), np.nan)
    places = (np.searchsorted(ms, gemm["m"]), np.searchsorted(ns, gemm["n"]), np.searchsorted(ks, gemm["k"]))
    times[places] = gemm["latency"]
    _fill(times.reshape(len(ms), -1).T, ms)
    heads = ("batch_size", "num_heads", "num_key_value_heads", "head_dim")
    plain = {"attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16", "window_size": 0}
    context = read("context_attention", (*heads, "isl"), **plain)
    generation = read("generation_attention", (*heads, "step"), **plain)
    _, context_lengths, by_context = _grouped(context, "isl", heads[1:])
    batches, generation_lengths, by_generation = _grouped(generation, "step", heads[1:])
    if (folder / "encoder_attention_perf.parquet").is_file():
        encoder = read("encoder_attention", ("batch_size", "num_heads", "head_dim", "isl"), attn_dtype="bfloat16")
        encoder_batches, encoder_lengths, by_encoder = _grouped(encoder, "isl", ("num_heads", "head_dim"))
    else:
        encoder_batches, encoder_lengths, by_encoder = np.zeros(0, np.int64), np.zeros(0, np.int64), {}
    return OperatorTables(
        ms, ns, ks, times, context_lengths, by_context, batches, generation_lengths, by_generation,
        encoder_batches, encoder_lengths, by_encoder,
    )  # fmt: skip


def _grouped(
    rows: dict[str, NDArray[Any]], length: str, keys: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[Any, Times]]:
    """[batch, length] arrays by key, gaps filled along the length."""
    batches, lengths = np.unique(rows["batch_size"]), np.unique(rows[length])
    found: dict[Any, Times] = {}
    places = zip(
        zip(*(rows[key].tolist() for key in keys), strict=True),
        np.searchsorted(batches, rows["batch_size"]).tolist(),
        np.searchsorted(lengths, rows[length]).tolist(),
        rows["latency"].tolist(),
        strict=True,
    )
    for key, batch, place, seconds in places:
        if key not in found:
            found[key] = np.full((len(batches), len(lengths)), np.nan)
        found[key][batch, place] = seconds
    for table in found.values():
        _fill(table, lengths)
        for batch in range(1, len(batches)):  # a batch that was not measured at all: as the one before, in proportion
            if np.isnan(table[batch]).all():
                table[batch] = table[batch - 1] * batches[batch] / batches[batch - 1]
    return batches, lengths, found


def _fill(table: Times, sizes: NDArray[np.int64]) -> None:
    """Rows over `sizes`: gaps are interpolated, ends continued along the last slope, in place. Large batches at long
    contexts were not measured, for they do not fit into memory."""
    for row in table:
        there = ~np.isnan(row)
        if there.all() or not there.any():
            continue
        known, seconds = sizes[there].astype(float), row[there]
        row[~there] = np.interp(sizes[~there], known, seconds)
        if len(known) > 1:
            slope = max(0.0, (seconds[-1] - seconds[-2]) / (known[-1] - known[-2]))
            beyond = sizes > known[-1]
            row[beyond] = seconds[-1] + slope * (sizes[beyond] - known[-1])


def _between(known: NDArray[Any], size: float, value: Callable[[int], Times]) -> Times:
    """`value(place)` in a straight line between the two known sizes around `size`; beyond the largest in proportion to the
    size, below the smallest as there."""
    place = int(np.searchsorted(known, size))
    if place < len(known) and known[place] == size:
        return value(place)
    if place == 0:
        return value(0)
    if place == len(known):
        return value(place - 1) * float(size / known[-1])
    part = float((size - known[place - 1]) / (known[place] - known[place - 1]))
    low, high = value(place - 1), value(place)
    return low + part * (high - low)


def _nearest(known: set[int], wanted: int) -> int:
    return min(known, key=lambda each: (abs(each - wanted), each))
