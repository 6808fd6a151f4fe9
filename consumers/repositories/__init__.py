"""Git repositories on disk: copies, and what is carried over into them."""
