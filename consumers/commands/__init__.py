"""The consumers' commands, one module each."""
