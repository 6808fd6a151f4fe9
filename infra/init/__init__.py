"""`headrace init`: a commented settings file, and the SQL and ACLs that an administrator runs."""
