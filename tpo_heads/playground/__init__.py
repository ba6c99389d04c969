"""The playground: a procedural video world with its full truth, a tiny base model to learn on, and the default recipe."""
