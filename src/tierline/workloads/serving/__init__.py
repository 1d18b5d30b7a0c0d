"""Serving workloads: who asks for what, when; the same for simulator and load generator. `source` holds the grammar."""

from tierline.workloads.serving.judged import judged
from tierline.workloads.serving.source import SERVING_WORKLOADS, Whole, load_served
from tierline.workloads.serving.trace import served_trace, workload_hash

__all__ = ["SERVING_WORKLOADS", "Whole", "judged", "load_served", "served_trace", "workload_hash"]
