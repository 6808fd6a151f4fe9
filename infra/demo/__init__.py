"""`headrace demo`: all four migrations on real servers."""
