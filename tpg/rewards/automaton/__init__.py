"""Progress of a response through a finite automaton."""
