"""The imperative shell: the one loop around the core, trigger supervision, reload, and the composition root."""
