"""The loop, the event table and the measures of a run."""
