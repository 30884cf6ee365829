"""The plan of a comparison: configuration, arms, controls, runs."""
