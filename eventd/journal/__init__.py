"""Durable tables of the present (SQLite or memory, one contract) and the run history in a database of its own."""
