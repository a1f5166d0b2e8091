"""One certification from its beginning to its end, and the check of one that is finished."""
