"""State machines without I/O: the only place where state changes and where hard limits hold."""
