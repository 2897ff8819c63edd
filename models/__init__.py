"""Models to test and measure with: the zoo of real ones, tiny ones built in code, and one trained here."""
