"""The jobs room: what a whole command does, for the command line and for scripts alike."""
