"""The contract with authors of migrations: what they write, and how that is found and checked."""
