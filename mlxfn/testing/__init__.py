"""Strategies and laws to test your own pieces with."""
