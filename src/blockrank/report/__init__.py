"""What people read of results: pages of HTML, evidence by words, and what a result was computed with."""
