"""The codec: PostgreSQL's text to Avro, and Avro to events; in C if it could be compiled, else in plain Python."""
