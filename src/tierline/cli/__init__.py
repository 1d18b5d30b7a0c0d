"""One file a command. Each exports `register(app)`."""
