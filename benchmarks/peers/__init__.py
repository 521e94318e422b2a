"""How others do the same work, each a program of its own: started by benchmarks/, never by a person."""
