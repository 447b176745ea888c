"""What each side reads before the response."""
