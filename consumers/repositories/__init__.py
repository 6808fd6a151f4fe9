"""Git repositories on disk: copies them, and carries later changes over."""
