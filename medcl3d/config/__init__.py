"""Configurations: YAML to frozen dataclasses, registries, field types."""
