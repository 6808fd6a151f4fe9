"""The producers' commands, one module each."""
