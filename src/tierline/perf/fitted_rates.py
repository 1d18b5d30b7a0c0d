"""`StageRates` that follow what instances see: each fits factors as it runs and tells them, the scheduler takes the middle of
what they told. The first rates are those of a profile, or, without one, of no device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Protocol, runtime_checkable

from tierline.core.stage_times import BatchShape
from tierline.perf.parts_fit import LEAST, MOST, NEWS, PartsFit
from tierline.perf.serving_demand import StageRates
from tierline.perf.serving_profile import ServingProfile

ENOUGH, ENOUGH_IMAGES = 32, 4  # seen, before an instance tells of them
WARM, EVERY = 256, 8  # of those beyond so many every so manieth is looked at: a look costs 40 microseconds
FACTORS = 5  # of an iteration, its prompts, its decodes, their contexts; of an image


@runtime_checkable
class UsesRates(Protocol):
    """A policy that predicts by rates, which may be renewed between two of its questions."""

    rates: StageRates


def parts_of(rates: StageRates, batch: BatchShape) -> tuple[float, ...]:
    """The terms of an iteration as `rates` have it, each predicted by coefficients of its own."""
    return (
        rates.decode_base_s,
        sum(rates.prefill_s(new + cached, cached) for new, cached in batch.chunks),
        rates.decode_sequence_s * batch.decodes,
        rates.decode_context_s * batch.decode_context,
    )


def scaled(rates: StageRates, factors: Sequence[float]) -> StageRates:
    """`rates` whose terms take so many times as long. Transfers are not fitted."""
    base, prompts, decodes, contexts, images = (min(MOST, max(LEAST, each)) for each in factors)
    return replace(
        rates,
        prefill_token_s=rates.prefill_token_s * prompts,
        prefill_pair_s=rates.prefill_pair_s * prompts,
        decode_base_s=rates.decode_base_s * base,
        decode_sequence_s=rates.decode_sequence_s * decodes,
        decode_context_s=rates.decode_context_s * contexts,
        encode_base_s=rates.encode_base_s * images,
        encode_patch_s=rates.encode_patch_s * images,
    )


def refitted(profile: ServingProfile, factors: Sequence[float]) -> ServingProfile:
    """A calibrated profile whose iterations and images take so many times as long, as instances have told (`FACTORS`)."""
    assert profile.linear is not None, "a profile with [linear]"
    base, prompts, decodes, contexts, images = factors
    linear = profile.linear
    return replace(
        profile,
        linear=replace(
            linear,
            iteration_s=linear.iteration_s * base,
            prompts_s=linear.prompts_s * prompts,
            token_s=linear.token_s * prompts,
            token_beyond_s=linear.token_beyond_s * prompts,
            pair_s=linear.pair_s * prompts,
            sequence_s=linear.sequence_s * decodes,
            context_s=linear.context_s * contexts,
            encode_s=linear.encode_s * images,
            patch_s=linear.patch_s * images,
            patch_pair_s=linear.patch_pair_s * images,
        ),
    )


class FittedRates:
    """An instance's side: `observe` iterations and images, and `news` is what to tell of them."""

    def __init__(self, rates: StageRates | None = None) -> None:
        self._rates = rates or StageRates()
        self._iterations, self._images = PartsFit(FACTORS - 1), PartsFit(1)
        self._told = (0.0,) * FACTORS
        self._count = 0

    def observe(self, batch: BatchShape, seconds: float) -> None:
        """An iteration took so long."""
        self._count += 1
        if self._count > WARM and self._count % EVERY:
            return
        self._iterations.observe(parts_of(self._rates, batch), seconds)

    def observe_image(self, tokens: int, seconds: float) -> None:
        """An image of so many positions took so long to encode."""
        self._images.observe((self._rates.image_s(tokens),), seconds)

    def news(self) -> tuple[float, ...]:
        """The factors, 0 for those that are not known here (nobody prefills where only decode is allowed); nothing at all
        where no factor has changed enough since they were last told."""
        factors = (*self._iterations.known(ENOUGH), *self._images.known(ENOUGH_IMAGES))
        if not any(abs(now - told) > NEWS * told for now, told in zip(factors, self._told, strict=True)):
            return ()
        self._told = factors
        return factors


class ToldRates:
    """The scheduler's side: the middle of what the instances that are there have told, factor by factor."""

    def __init__(self, rates: StageRates) -> None:
        self._rates = rates
        self._told: dict[str, tuple[float, ...]] = {}

    def hear(self, name: str, factors: tuple[float, ...]) -> StageRates:
        """An instance has told; the rates from now on, within the limits of `scaled`. What nobody knows stays as it was at
        the start."""
        self._told[name] = factors
        columns = zip(*self._told.values(), strict=True)
        known = [[each for each in column if each > 0] for column in columns]
        return scaled(self._rates, [median(each) if each else 1.0 for each in known])

    def forget(self, name: str) -> None:
        """The instance is gone; the rates stay until the next one tells."""
        self._told.pop(name, None)
