"""Workloads: traces and synthetic arrivals, as timed jobs with hidden courses. One registry, one place that parses."""

from tierline.workloads.source import WORKLOADS, Scale, load

__all__ = ["WORKLOADS", "Scale", "load"]
