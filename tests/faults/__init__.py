"""Everything that goes wrong, at once and by chance, and what has to hold after it."""
