"""Moving repositories between gitservers: the worker, its states, and what is recorded."""
