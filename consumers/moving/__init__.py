"""Moving git repositories from one node's root to another's without losing any: the parts of `rehash_moves`."""
