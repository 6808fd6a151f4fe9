"""Kinds of repositories, each made so that something of it is easily lost, or does harm, when it is moved."""

from tests.consumers.gitserver.kinds import hostile, leftovers, refused, whole
from tests.consumers.gitserver.kinds.registry import KINDS, MARK, Kind, inventory

__all__ = ["KINDS", "MARK", "Kind", "hostile", "inventory", "leftovers", "refused", "whole"]
