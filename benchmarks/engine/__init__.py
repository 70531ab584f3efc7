"""The engine beside its peers and beside itself: one command, one idea a file (see __main__)."""
