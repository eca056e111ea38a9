"""What requests took: written ahead to disk, summed by hour, told to the master exactly once."""
