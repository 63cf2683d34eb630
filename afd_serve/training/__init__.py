"""Fitting AFD to a frozen backbone with unlabelled pictures."""
