"""Migrations without code: sections of the settings, checked on the server before they run."""
