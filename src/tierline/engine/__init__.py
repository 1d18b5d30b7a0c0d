"""The built-in model executor of the serving tier: PyTorch and Transformers over a paged KV arena, on CPU and CUDA.

A model runs through Transformers' own modules; only its attention is ours (`attention.py`), over packed sequences without
padding. What runs when is decided by `schedulers/instance.py`; this package computes. Needs the extra `serve`.
"""
