"""Serving workloads: who asks for what, when; the same for simulator and load generator. `source` holds the grammar."""

from tierline.workloads.serving.judged import judged, judged_source
from tierline.workloads.serving.source import SERVING_WORKLOADS, Whole, load_served
from tierline.workloads.serving.trace import served_trace, workload_hash

__all__ = ["SERVING_WORKLOADS", "Whole", "judged", "judged_source", "load_served", "served_trace", "workload_hash"]
