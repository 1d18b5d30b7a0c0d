"""The kernel tier in Python: sharing one device between programs, or between the threads of one, kernel by kernel.

The decisions are taken by native/core inside the programs themselves (see docs/concepts/kernel-manager.md). Here is what
surrounds them: `client` for threads of one process, profiles, regions and what they tell, calibration, starting programs.
"""
