"""The fleet: many engines on Ray behind the engine protocol; ids go out, answers come back, weights never travel."""
