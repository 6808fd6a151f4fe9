"""One health indicator a file. Every module in here is scanned; nothing else has to be edited."""
