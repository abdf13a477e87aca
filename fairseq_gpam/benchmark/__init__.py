"""Time and memory of every mechanism and backend against the unmodified fairseq, measured in pairs."""
