"""What ualm-tiny learns: its sounds, its words, and the conversations that they make."""
