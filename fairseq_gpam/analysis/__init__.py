"""Diagnostics of a trained or fresh transformer: metrics (pure functions), the probe (hooks), the report."""
