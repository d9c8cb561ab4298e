"""The pieces put together for a person: CLI, presets, demo data, quickstart, reports."""
