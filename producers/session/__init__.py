"""A source's producer: what it does at a start, its loop, and what it is asked to do."""
