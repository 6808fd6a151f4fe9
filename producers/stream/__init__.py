"""Reads the replication stream: connection, pgoutput, and reassembled transactions."""
