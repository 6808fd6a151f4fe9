"""The settings file described: its schema, the origin of each value, the line or variable of each key."""
