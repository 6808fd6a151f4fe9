"""What no event tells of captured tables, seen by looking at catalog and topics every few seconds."""
