"""The worker: it starts the ranks that the head asked for, holds on to them, and reports how they end."""
