"""Walks git storages and publishes their repositories as events."""
