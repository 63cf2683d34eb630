"""What `benchmarks/faults.py` does to a server, by kind of fault."""
