"""Time and memory of every mechanism and backend, measured in pairs with unmodified fairseq."""
