"""How many candidates a scorer sees at once, and how partial results become one ranking."""
