"""Other tools on the same task, each in an environment of its own."""
