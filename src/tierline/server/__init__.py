"""The daemon and its HTTP API: jobs, sweeps, shares, events, measures; over a Unix socket, and TCP with a token."""
