"""Models: loading, adapters, keyed dropout, recomputation, export."""
