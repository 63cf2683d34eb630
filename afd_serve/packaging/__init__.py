"""Exported classifiers as what a server loads."""
