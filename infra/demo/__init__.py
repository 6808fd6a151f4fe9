"""The whole story on real servers: `headrace demo`."""
