"""The document of the status, shared by `headrace status --json` and the console's API."""
