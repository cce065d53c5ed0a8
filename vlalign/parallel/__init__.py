"""The mesh, the rules that lay parameters onto it, and the constraint on activations."""
