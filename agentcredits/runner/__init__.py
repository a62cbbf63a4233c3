"""The runner: the only place that knows threads, event loops and processes."""
