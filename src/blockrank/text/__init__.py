"""What a person can see of a text, and what a word of it is, in every script."""
