"""Dead letters, and what was given up: shown, tried again, dropped."""
