"""Moves repositories between gitservers: the worker, the states of a move, and its records."""
