"""The console: one page about every migration and source, live, and the JSON API behind it."""
