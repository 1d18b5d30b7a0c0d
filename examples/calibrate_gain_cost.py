"""Step one of three: what this machine takes to serve a model, and when an instance does more good in another stage.

Measures `tiny-vlm` here and writes a profile (`tierline calibrate serving` does the same), then weighs with it what the stage
policy `gain_cost` weighs: prefill takes an instance from decode if prompts gain more than decodes lose. Without measuring:
python examples/calibrate_gain_cost.py --profile h100:Qwen2.5-VL-7B
"""

import argparse
from pathlib import Path

from tierline.core.fleet_view import DecodeView, PromptView
from tierline.core.stage_times import BatchShape, StageTimes
from tierline.perf.device_times import stage_times
from tierline.perf.serving_demand import StageRates
from tierline.perf.serving_profile import save_profile
from tierline.policies.stages.gain_cost import moving_cost, prompts_gain, slowdown

PROMPT, CONTEXT, REMAINING, DECODES = 1000, 800, 200, 8  # tokens of each; requests that decode
HORIZON_S = 2.0


def measured(model: str, seconds: float, path: Path) -> StageTimes:
    """Run the engine here for a while, fit its times, keep them in `path`."""
    from tierline.deployment import DeploymentOptions, instance_settings
    from tierline.engine.calibrate import CalibrationOptions, calibrate

    (settings,) = instance_settings(DeploymentOptions(model=model)).values()
    profile = calibrate(settings, model, CalibrationOptions(seconds), report=lambda share, doing: None)
    save_profile(profile, path)
    print(f"{path} is for: tierline serve {model} --policy adaptive --profile {path}\n")
    return stage_times(str(path))


def tell_times(times: StageTimes) -> None:
    for what, seconds in (
        (f"a prompt of {PROMPT} tokens", times.iteration_s(BatchShape(chunks=((PROMPT, 0),)))),
        (f"a token for each of {DECODES}", times.iteration_s(BatchShape((), DECODES, DECODES * CONTEXT))),
        ("an image of 1024 patches", times.encode_s((1024,))),
        (f"KV of {CONTEXT} tokens to move", times.transfer_s(CONTEXT * times.kv_token_bytes)),
    ):
        print(f"{what:<28}{1000 * seconds:9.2f} ms")


def tell_gain_and_cost(rates: StageRates) -> None:
    """Two instances decode, one prefills; shall one of the two go over to it?"""
    decodes = [(DecodeView(f"d{n}", CONTEXT, 50, REMAINING), 1.0) for n in range(DECODES)]
    there = decodes[: DECODES // 2]  # on the instance that would be taken
    cost = moving_cost(there, rates) + slowdown(decodes, 2, 1, HORIZON_S, rates)
    print(f"\n{DECODES} requests decode on two instances. Prefill takes one of these if")
    for waiting in (1, 4, 8, 16, 32, 64):
        prompts = [(PromptView(f"p{n}", "text", PROMPT, rates.prefill_s(PROMPT), 0.0), 1.0) for n in range(waiting)]
        gain = prompts_gain(prompts, before=(1.0,), after=(1.0, 1.0))
        verdict = "takes it" if gain > cost else "leaves it"
        print(f"{waiting:>3} prompts wait: gain {1000 * gain:8.3f}, cost {1000 * cost:8.3f} ms a token: {verdict}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny-vlm")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to measure")
    parser.add_argument("--output", type=Path, default=Path("tiny-vlm.toml"))
    parser.add_argument("--profile", default="", help="do not measure, take these times")
    told = parser.parse_args()
    times = stage_times(told.profile) if told.profile else measured(told.model, told.seconds, told.output)
    tell_times(times)
    tell_gain_and_cost(StageRates.of(times))
