"""Models of this package in lmms-eval, which finds them by the entry point `cobra`; that program imports this room."""
