"""The commands of the producers' side, one module each."""
