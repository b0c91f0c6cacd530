"""Evaluation through lm-evaluation-harness, with default and perturbed queries."""
