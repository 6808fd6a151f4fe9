"""Where an application finds a repository while it moves."""
