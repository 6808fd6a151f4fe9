"""Routes applications to repositories while these move."""
