"""Lists, retries and discards dead letters and external work that was given up."""
