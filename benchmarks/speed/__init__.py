"""How fast the engine is, against its parts' plain use and against what the machine could do."""
