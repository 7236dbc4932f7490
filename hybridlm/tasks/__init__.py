"""Tasks with known answers: generated from a seed, of a difficulty that its fields say, with the score of guessing."""
