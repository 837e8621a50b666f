//! Which endpoint takes a connection: health, locality, weight, affinity.
