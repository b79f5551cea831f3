"""Two heads that act as one: who may act, and a journal that both have."""
