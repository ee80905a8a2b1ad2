"""What ualm-tiny learns: its sounds, its words, and conversations made of them."""
