"""Tierline: a hierarchical scheduler for deep-learning work.

A training script needs three names, and importing them costs nothing else::

    import tierline
    tierline.report(step, loss=loss)
"""

from tierline.report import checkpoint_dir, report, resuming, save_checkpoint, should_stop

__version__ = "0.1.0"
__all__ = ["__version__", "checkpoint_dir", "report", "resuming", "save_checkpoint", "should_stop"]
