"""What is known of the board that this runs on."""
