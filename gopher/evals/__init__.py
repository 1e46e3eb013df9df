"""Evaluation: tasks compiled into request bundles, their scores, what training text they overlap with."""
