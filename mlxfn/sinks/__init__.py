"""Sinks: where the events of a run are written."""
