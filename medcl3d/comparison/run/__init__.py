"""Runs of a comparison as processes of this machine or jobs of a cluster."""
