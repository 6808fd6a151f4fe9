"""Detects changes of captured tables that have no event, by polling catalog and topics every few seconds."""
