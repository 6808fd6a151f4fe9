"""The consumer: its loop and its parts."""
