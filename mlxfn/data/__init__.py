"""Rows: records, formats, loss masks, order, batches, and a cursor that can be saved."""
