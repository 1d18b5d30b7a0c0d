"""The kernel tier in Python: sharing one device between programs, or between the threads of one, kernel by kernel.

The decisions are taken by native/core inside the programs themselves (see docs/concepts/kernel-manager.md). Here is what
surrounds them: `client` for threads of one process, profiles, regions and what they tell, calibration, starting programs.
"""

from tierline.kernels.client import OutsideTierline, client
from tierline.kernels.environment import kernel_environment, library_path
from tierline.kernels.profile import KernelProfile, read_profiles, write_profiles
from tierline.kernels.region import RegionSeen, read_region

__all__ = [
    "KernelProfile",
    "OutsideTierline",
    "RegionSeen",
    "client",
    "kernel_environment",
    "library_path",
    "read_profiles",
    "read_region",
    "write_profiles",
]
