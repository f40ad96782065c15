"""Ray: many engines behind the engine protocol; ids go out, answers come back, weights never travel."""
