"""Kinds of repositories, each with content that is easily lost or harmful when it is moved."""

from tests.consumers.gitserver.kinds import hostile, leftovers, refused, whole
from tests.consumers.gitserver.kinds.registry import KINDS, MARK, Kind, inventory

__all__ = ["KINDS", "MARK", "Kind", "hostile", "inventory", "leftovers", "refused", "whole"]
