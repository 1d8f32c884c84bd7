"""Posteriors larger than memory: plan them, record them while training, compare what they predict."""
