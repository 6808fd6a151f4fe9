"""The releases of a schema migration: which statement comes next, and how it is carried out."""
