"""Makes the serving profiles in the package from aiconfigurator's operator tables: python scripts/serving_profiles.py FOLDER

FOLDER holds h100_sxm, h200_sxm, l40s and a100_sxm, each with *_perf.parquet (src/aiconfigurator/systems/data of
ai-dynamo/aiconfigurator, the vLLM tables). Needs the extra `tables`. Prints how far each profile is from its tables.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tierline.core.errors import InvalidInput
from tierline.perf.device_times import packaged_name
from tierline.perf.model_shapes import SHAPES
from tierline.perf.operator_tables import read_tables
from tierline.perf.serving_devices import DEVICES
from tierline.perf.serving_profile import save_profile
from tierline.perf.table_profile import table_profile

PROFILES = Path(__file__).resolve().parent.parent / "src" / "tierline" / "perf" / "profiles"
TOLERANCE = 0.01


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, default=PROFILES)
    options = parser.parse_args()
    for device in DEVICES.values():
        tables = read_tables(options.folder / device.folder)
        for shape in SHAPES.values():
            try:
                profile = table_profile(tables, device, shape, TOLERANCE)
            except InvalidInput as error:
                print(f"left out: {error}")
                continue
            path = options.output / packaged_name(device.name, shape.name)
            save_profile(profile, path)
            fit = profile.fit
            print(
                f"{path.name}: {path.stat().st_size} bytes; iterations off by {fit.median:.2%} (median), {fit.p95:.2%} "
                f"(P95); images by {fit.encode_median:.2%}, {fit.encode_p95:.2%}; {profile.memory.kv_tokens} KV tokens, "
                f"tipping point {profile.advice.tipping_tokens} tokens"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
