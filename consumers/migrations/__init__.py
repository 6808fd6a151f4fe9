"""The migrations, one per file. Every module in this folder is scanned; no list has to be edited."""
