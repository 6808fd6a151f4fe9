"""Imports every command, for processes that are forked from one that has."""

from __future__ import annotations

from headrace import app

APP = app
