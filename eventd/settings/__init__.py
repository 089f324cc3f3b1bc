"""TOML text to Settings, or *all* problems at once, each with file, line, path and a hint.

This room reads files (the configuration, the handlers folder) but starts nothing, listens on nothing and writes nothing.
It knows no trigger: kinds of triggers are handed in as values (`load.Kind`).
"""
