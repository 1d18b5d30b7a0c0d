"""What is to be done, in the imperative. Actions are the only output of a scheduler; each one carries its reason."""

from __future__ import annotations

from dataclasses import dataclass

from tierline.core.serving_actions import ServingAction


@dataclass(frozen=True, slots=True)
class StartJob:
    """Start this attempt on these devices. `attempt` counts from 1; a backend starts each attempt at most once.

    `density` (utility per GPU-second) is what the policy expected, `price` the clearing price λ at that moment; both
    are 0.0 for policies that know neither. `shares_with`: jobs that hold these devices already and go on; then this
    attempt is the guest, with the lower claim on the device. () = the devices are its own.
    """

    job_id: str
    attempt: int
    device_ids: tuple[str, ...]
    resume: bool
    reason: str
    density: float = 0.0
    price: float = 0.0
    shares_with: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PreemptJob:
    """Ask the attempt to checkpoint and leave; it answers with `JobExited(outcome="preempted")`."""

    job_id: str
    attempt: int
    reason: str
    density: float = 0.0
    price: float = 0.0


@dataclass(frozen=True, slots=True)
class StopJob:
    """End the attempt for good; it answers with `JobExited(outcome="stopped")`."""

    job_id: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Have `TimerFired(name)` delivered at `at_ns`, after all other events of that moment."""

    name: str
    at_ns: int


@dataclass(frozen=True, slots=True)
class RecordRefusal:
    """A proposal of the policy that the scheduler did not carry out. Recorded, so that nothing is dropped in silence."""

    job_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class RecordEnd:
    """A job is over (also one that never ran): `phase` is `completed`, `failed` or `stopped`."""

    job_id: str
    phase: str
    reason: str


JobAction = StartJob | PreemptJob | StopJob | SetTimer | RecordRefusal | RecordEnd
Action = JobAction | ServingAction
