"""The commands of the consumers' side, one module each."""
