"""Is the model still learning, or only repeating itself? One file per monitor family, and the rule."""
