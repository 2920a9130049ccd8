"""Learning curves: what they will reach, and which trial to train next: pure functions of what the store has."""
