"""Runs what commands ask for once their arguments are read: consumers, releases and comparisons."""
