"""How much at once, and how fast."""
