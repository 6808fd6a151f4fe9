"""A member of a consumer group: the loop, and what it is made of."""
