"""What a source consists of in PostgreSQL: tables, publication, slot, and what has to hold before they are read."""
