"""Suggestions for a store: usable pair strategies, a patch size, and a comparison."""
