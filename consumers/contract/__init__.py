"""The API for authors of migrations, and the discovery and checking of what they write."""
