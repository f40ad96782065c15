"""The Ray engine: many engines behind the engine protocol; ids go out, results come back, weights never travel."""
