"""What the target database knows of consumers: ledger, fence, owners; and how it fails."""
