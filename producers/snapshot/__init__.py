"""Reading tables, chunk by chunk, beside the stream."""
