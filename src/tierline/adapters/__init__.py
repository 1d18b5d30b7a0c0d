"""Adapters that report for a training loop that is not yours. Each file wraps one library and alone imports it."""
