"""Are these outputs the reference's? What is measured, and what a budget allows."""
