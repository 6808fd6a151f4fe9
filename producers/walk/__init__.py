"""Walks of git storages, whose repositories become events."""
