"""Triggers that refuse writes to tables that a database no longer owns."""
