"""State in the target database (ledger, fence, owners), the connection to it, and its errors."""
