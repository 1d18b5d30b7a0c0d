"""Backends of the kernel tier: `sim` runs workloads in virtual time, `cuda` starts real programs under the interposer."""
