"""One page that tells whether distillation helped, and the tables behind it."""
