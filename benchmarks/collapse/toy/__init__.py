"""Tier B's world: a grammar of small Python tasks, and a tiny language model that has learned it."""
