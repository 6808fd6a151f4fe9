"""Reads tables chunk by chunk, interleaved with the stream."""
