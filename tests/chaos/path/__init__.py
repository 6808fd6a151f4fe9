"""The chaos harness for the whole path, from the application's commit to a migration's effect: `make chaos`.

`python -m tests.chaos.path` plays rounds: a random application writes while everything on the path is killed, frozen,
restarted, cut off and slowed. Afterwards the history checker (`checker.py`) decides from what was logged on the way
whether a promise was broken.
"""
