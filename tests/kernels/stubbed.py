"""`tierline` with a native half that does nothing: `python stubbed.py LIB COMMAND...`, LIB being the folder of its libraries.

What `tierline run` does around a program (exec, signals, streams, exit codes) is tested with it on every machine.
"""

import importlib.util
import os
import sys
from pathlib import Path


def main() -> int:
    spec = importlib.util.spec_from_file_location("made_up", Path(__file__).with_name("made_up_native.py"))
    made_up = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made_up)
    sys.modules["tierline._native"] = made_up.native_module()
    from tierline.cli.main import main as tierline
    from tierline.kernels import environment

    environment.LIB = Path(sys.argv[1])
    return tierline(sys.argv[2:])


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
