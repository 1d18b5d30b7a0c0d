"""From logits to tokens. The draw for output token n of a request depends on its seed, n and its logits alone: never on
who else is in the batch, on the device, or on what happened before."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tierline.core.request import Sampling, TokenLogprob


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence for which a token is drawn. `made` are its output tokens, `banned` those that end an answer (they
    cannot be drawn before `sampling.min_tokens`)."""

    sampling: Sampling
    prompt: Sequence[int]
    made: Sequence[int]
    banned: tuple[int, ...]


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) for output token `index` of a request with `seed`."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53  # all that a double holds: nothing is rounded up to 1


def is_plain(row: Row) -> bool:
    """Whether the token is simply the likeliest."""
    s = row.sampling
    neutral = not (s.presence_penalty or s.frequency_penalty or s.logit_bias) and s.repetition_penalty == 1.0
    return s.temperature == 0 and neutral and s.logprobs is None and len(row.made) >= s.min_tokens


def draw(logits: torch.Tensor, rows: Sequence[Row]) -> tuple[list[int], list[TokenLogprob | None]]:
    """One token a row of `logits` [rows, vocabulary], and its log-probabilities where they are asked for."""
    if all(is_plain(row) for row in rows):
        tokens: list[int] = _likeliest(logits)
        return tokens, [None] * len(rows)
    logits = logits.float()
    raw = logits
    logits = logits.clone()
    for place, row in enumerate(rows):
        _penalise(logits[place], row)
    tokens = _likeliest(logits)
    sampled = [place for place, row in enumerate(rows) if row.sampling.temperature > 0]
    if sampled:
        drawn = _sample(logits[sampled], [rows[place] for place in sampled])
        for place, token in zip(sampled, drawn, strict=True):
            tokens[place] = token
    return tokens, [_logprob(raw[place], tokens[place], row.sampling.logprobs) for place, row in enumerate(rows)]


def _likeliest(logits: torch.Tensor) -> list[int]:
    # On a CPU `max` is several times faster than `argmax` for bf16.
    tokens: list[int] = logits.max(dim=-1).indices.tolist()
    return tokens


def _penalise(logits: torch.Tensor, row: Row) -> None:
    """Change one row in place: repetition over prompt and output (CTRL), presence and frequency over the output (OpenAI),
    biases, and no end before `min_tokens`."""
    sampling = row.sampling
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*row.prompt, *row.made}), device=logits.device)
        scores = logits[seen]
        logits[seen] = torch.where(
            scores > 0, scores / sampling.repetition_penalty, scores * sampling.repetition_penalty
        )
    if row.made and (sampling.presence_penalty or sampling.frequency_penalty):
        seen, counts = torch.unique(torch.tensor(row.made, device=logits.device), return_counts=True)
        logits[seen] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    for token, bias in sampling.logit_bias:
        logits[token] += bias
    if len(row.made) < sampling.min_tokens and row.banned:
        logits[list(row.banned)] = float("-inf")


def _sample(logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
    """Temperature, then the cuts top-k, top-p and min-p in this order, then one draw by the inverse of the distribution."""
    device, vocabulary = logits.device, logits.shape[-1]

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=device).unsqueeze(-1)

    settings = [row.sampling for row in rows]
    # Double precision: over a large vocabulary sums of singles would shift the draw.
    ordered, tokens = (logits.double() / column([s.temperature for s in settings])).sort(
        dim=-1, descending=True, stable=True
    )
    ranks = torch.arange(vocabulary, device=device)
    ordered = ordered.masked_fill(ranks >= column([float(s.top_k or vocabulary) for s in settings]), float("-inf"))
    weights = ordered.softmax(dim=-1)
    before = weights.cumsum(dim=-1) - weights
    weights = weights.masked_fill((before >= column([s.top_p for s in settings])) & (ranks > 0), 0.0)
    weights = weights.masked_fill(weights < weights[:, :1] * column([s.min_p for s in settings]), 0.0)
    sums = weights.cumsum(dim=-1)
    at = column([uniform(row.sampling.seed, len(row.made)) for row in rows]) * sums[:, -1:]
    places = torch.searchsorted(sums, at, right=True).clamp_(max=vocabulary - 1)
    drawn: list[int] = tokens.gather(-1, places).squeeze(-1).tolist()
    return drawn


def _logprob(logits: torch.Tensor, token: int, count: int | None) -> TokenLogprob | None:
    if count is None:
        return None
    logprobs = logits.log_softmax(dim=-1)
    top: tuple[tuple[int, float], ...] = ()
    if count:
        values, tokens = logprobs.topk(count)
        top = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
    return TokenLogprob(float(logprobs[token]), top)
