"""What both engines share: applies the edits of each request to the residual stream, reads scores from it and sums doses."""
