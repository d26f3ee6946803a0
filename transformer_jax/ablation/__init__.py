"""Many runs to one answer, with its uncertainty."""
