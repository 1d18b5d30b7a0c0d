"""Where the serving scheduler's actions are carried out: `torch.py`, processes of the built-in engine."""
