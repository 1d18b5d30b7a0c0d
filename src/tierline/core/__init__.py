"""Data and contracts only: nouns, events, actions, views, errors, Protocols. Imports nothing of ours."""
