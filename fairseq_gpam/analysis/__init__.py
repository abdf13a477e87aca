"""Diagnostics of a transformer, trained or newly initialised: metrics (pure functions), probe (hooks), report."""
