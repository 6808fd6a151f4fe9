"""A source's producer: its start, its loop, and the requests that it takes."""
