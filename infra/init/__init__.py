"""What a person starts with: a commented settings file, and what an administrator has to run."""
